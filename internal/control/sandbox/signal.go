package sandbox

import "sync"

// signal wakes those who wait for a row to be settled in this process; other control
// planes' changes are found by polling.
type signal struct {
	mu      sync.Mutex
	waiting map[string]*waiters
}

type waiters struct {
	ch    chan struct{}
	count int
}

func newSignal() *signal { return &signal{waiting: map[string]*waiters{}} }

// subscribe returns a channel that the next notify of id closes, and what gives it back.
func (s *signal) subscribe(id string) (<-chan struct{}, func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.waiting[id]
	if w == nil {
		w = &waiters{ch: make(chan struct{})}
		s.waiting[id] = w
	}
	w.count++
	return w.ch, func() { s.leave(id, w) }
}

func (s *signal) leave(id string, w *waiters) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.count--; w.count == 0 && s.waiting[id] == w {
		delete(s.waiting, id)
	}
}

func (s *signal) notify(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.waiting[id]; w != nil {
		close(w.ch)
		delete(s.waiting, id)
	}
}
