package uffd

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// server answers the faults of one VM. Two goroutines put pages: serve, and prefetch until it is
// done.
//
// What may not happen is that a page gets its old content after the VM has given it up. So
// messages are read, and removed pages noted, with turn held for writing; a page is put with it
// held for reading, after a last look at what is removed. Whoever gives up memory waits in the
// kernel until its message has been read, and until it has gone on nothing can be put (EAGAIN).
type server struct {
	uffd   userfault
	space  space
	source *memory.Source
	state  *state
	window uint32 // pages put around a fault, a power of two
	log    *slog.Logger

	turn    sync.RWMutex
	present []uint64 // pages that were put and not removed since, as far as this life knows
	// faults are read and not yet served.
	faults []uint32
	odd    map[uint8]bool // events that were complained of
}

func newServer(u userfault, list []region, source *memory.Source, st *state, window uint32, log *slog.Logger) *server {
	return &server{
		uffd: u, space: list, source: source, state: st, window: window, log: log,
		present: make([]uint64, (source.Pages()+63)/64), odd: map[uint8]bool{},
	}
}

// errGone says that the VM's memory is no more.
var errGone = errors.New("the VM is gone")

// serve runs until the VM is gone (nil), stop or halt is readable, or a page cannot be served.
func (s *server) serve(vmm, stop, halt int) error {
	p := newPutter(s)
	wait := newPoller(int(s.uffd), vmm, stop, halt)
	for {
		if err := wait.wait(); err != nil {
			return err
		}
		switch {
		case wait.ready(2), wait.ready(3):
			return errStopped
		case wait.ready(1):
			return nil
		}
		if err := s.answer(p); errors.Is(err, errGone) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// answer reads what there is and serves it.
func (s *server) answer(p *putter) error {
	if err := s.read(); err != nil {
		return err
	}
	for i := 0; i < len(s.faults); i++ { // which reads more when the memory changes
		if err := s.fault(p, s.faults[i]); err != nil {
			return err
		}
	}
	s.faults = s.faults[:0]
	return nil
}

// read takes messages into the state's inbox, where a successor finds those that this life did not
// get to obey. Only this goroutine reads.
func (s *server) read() error {
	s.turn.Lock()
	defer s.turn.Unlock()
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&s.state.inbox[0])), batch*messageSize)
	n, err := unix.Read(int(s.uffd), raw)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("read userfaultfd: %w", err)
	}
	s.obey(n / messageSize)
	return nil
}

// obey notes what the first n messages of the inbox say and empties it.
func (s *server) obey(n int) {
	for i := range s.state.inbox[:n] {
		m := &s.state.inbox[i]
		switch {
		case m.event == 0:
		case m.event == eventFault && m.a&(faultProtect|faultMinor) == 0:
			s.noteFault(m.b)
		case m.event == eventRemove:
			s.space.pages(m.a, m.b, func(first, count uint32) {
				s.state.remove(first, count)
				clearBits(s.present, first, count)
			})
		case m.event == eventFork:
			_ = unix.Close(int(uint32(m.a))) // the kernel gives the reader a descriptor of the child's memory
			s.complain(m.event)
		default:
			s.complain(m.event)
		}
		m.event = 0
	}
}

// replay obeys what the life before this one had read. Its faults are asked again by who waits,
// and a descriptor that it got went with it.
func (s *server) replay() {
	for i := range s.state.inbox {
		if s.state.inbox[i].event != eventRemove {
			s.state.inbox[i].event = 0
		}
	}
	s.obey(batch)
}

func (s *server) noteFault(addr uint64) {
	if n, ours := s.space.page(addr); ours {
		s.faults = append(s.faults, n)
		return
	}
	s.complain(eventFault)
}

// complain writes once of each kind of message that no VMM of ours sends.
func (s *server) complain(event uint8) {
	if !s.odd[event] {
		s.odd[event] = true
		s.log.Warn("message ignored", "event", event)
	}
}

// wakeAll makes whoever waits ask again: messages that the life before read are lost.
func (s *server) wakeAll() error {
	for _, r := range s.space {
		err := s.uffd.wake(r.addr, r.size)
		if errors.Is(err, unix.ESRCH) {
			return errGone
		}
		if err != nil {
			return fmt.Errorf("wake %#x+%#x: %w", r.addr, r.size, err)
		}
	}
	return nil
}

// fault puts the page that somebody waits for, first, and what is missing around it.
func (s *server) fault(p *putter, n uint32) error {
	s.state.count(countFaults, 1)
	addr, low, high := s.space.at(n)
	low, high = max(low, n/s.window*s.window), min(high, (n/s.window+1)*s.window)
	count, err := s.demand(p, n, high)
	if err != nil {
		return err
	}
	if count == 0 { // it was there: who waits has not been told
		return s.wake(addr)
	}
	recording := s.state.recording()
	if recording {
		s.state.note(n, count)
	}
	for at := low; at < high; {
		at += alike(s.present, at, high-at, true)
		if at >= high {
			break
		}
		count, err := p.put(at, alike(s.present, at, high-at, false))
		if errors.Is(err, unix.EAGAIN) || (err == nil && count == 0) {
			return nil // nobody asked for it yet
		}
		if err != nil {
			return err
		}
		if recording {
			s.state.note(at, count)
		}
		at += count
	}
	return nil
}

// demand puts page n, with those behind it that are alike, as often as the memory changes under
// it. It says how many it put.
func (s *server) demand(p *putter, n, high uint32) (uint32, error) {
	for {
		count, err := p.put(n, 1+alike(s.present, n+1, high-n-1, false))
		if !errors.Is(err, unix.EAGAIN) {
			return count, err
		}
		// Who changes it waits for its message to be read, or is about to go on.
		if err := s.read(); err != nil {
			return 0, err
		}
		time.Sleep(changing)
	}
}

// changing is how long a change of the memory takes, about.
const changing = 20 * time.Microsecond

func (s *server) wake(addr uint64) error {
	err := s.uffd.wake(addr, memory.PageSize)
	if errors.Is(err, unix.ESRCH) {
		return errGone
	}
	return fault.Wrap(err, "wake", "VM")
}
