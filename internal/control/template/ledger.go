package template

import (
	"sync"
	"time"
)

// erasedFor is how long an erased thing that turns up again is known for what it is: longer
// than a host works on any call.
const erasedFor = time.Hour

// ledger remembers what was erased of late: a host that was still at work on a call that
// nobody waited for any more may finish it after its erase.
type ledger struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (l *ledger) note(now time.Time, names ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[string]time.Time{}
	}
	for name, at := range l.at {
		if now.Sub(at) > erasedFor {
			delete(l.at, name)
		}
	}
	for _, name := range names {
		l.at[name] = now
	}
}

func (l *ledger) has(now time.Time, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, known := l.at[name]
	return known && now.Sub(at) <= erasedFor
}

// Erased says that a stray snapshot, by its id, is of a row that was erased here.
func (s *Service) Erased(snapshotID string) bool {
	return s.erased.has(s.now(), "snapshot "+snapshotID)
}

// ErasedName says the same of a stray template.
func (s *Service) ErasedName(name string) bool { return s.erased.has(s.now(), "template "+name) }
