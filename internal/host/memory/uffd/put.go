package uffd

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// piece is how much is put at once: long enough that a call costs nothing beside its pages, short
// enough that nobody waits long for its turn.
const piece = 64

// putter puts pages; each goroutine has its own.
type putter struct {
	s   *server
	buf []byte
}

func newPutter(s *server) *putter {
	return &putter{s, make([]byte, piece*memory.PageSize)}
}

// put puts pages from n on, at least one and at most most of them: as many as are alike. It says
// how many it put or found; 0 without an error says that page n was there, or cannot be. EAGAIN
// says that the memory is changing. Damage is fault.DataLoss, and puts nothing.
func (p *putter) put(n, most uint32) (uint32, error) {
	most = min(most, piece)
	addr, _, end := p.s.space.at(n)
	most = min(most, end-n)
	if p.s.state.isRemoved(n) {
		return p.zeros(n, alike(p.s.state.removed, n, most, true), addr)
	}
	most = alike(p.s.state.removed, n, most, false)
	zero, count := p.s.source.Run(n, most)
	if zero {
		return p.zeros(n, count, addr)
	}
	data, err := p.s.source.Read(p.buf, n, count)
	if err != nil {
		return 0, err
	}
	return p.data(n, count, addr, data)
}

// zeros are right whatever happens meanwhile: a page that is removed becomes zero.
func (p *putter) zeros(n, count uint32, addr uint64) (uint32, error) {
	p.s.turn.RLock()
	defer p.s.turn.RUnlock()
	return p.all(n, count, countZeroed, func(done uint32) (int, error) {
		return p.s.uffd.zeroIn(addr+uint64(done)*memory.PageSize, int(count-done)*memory.PageSize)
	})
}

func (p *putter) data(n, count uint32, addr uint64, data []byte) (uint32, error) {
	p.s.turn.RLock()
	defer p.s.turn.RUnlock()
	if alike(p.s.state.removed, n, count, false) < count {
		return 0, unix.EAGAIN // removed while it was read
	}
	return p.all(n, count, countCopied, func(done uint32) (int, error) {
		return p.s.uffd.copyIn(addr+uint64(done)*memory.PageSize, data[int(done)*memory.PageSize:])
	})
}

// all repeats put until count pages from n on are done or found.
func (p *putter) all(n, count uint32, counter int, put func(done uint32) (int, error)) (uint32, error) {
	fresh := uint32(0) // put by us, not found
	defer func() { p.s.state.count(counter, fresh) }()
	deadline := time.Time{}
	for done := uint32(0); done < count; {
		bytes, err := put(done)
		pages := uint32(bytes / memory.PageSize)
		if pages > 0 {
			fresh += pages
		} else if pages, err = p.skip(err, n+done, &deadline); err != nil {
			return done, err
		}
		setBits(p.s.present, n+done, pages)
		done += pages
	}
	if fresh == 0 {
		return 0, nil
	}
	return count, nil
}

// shortOfMemory is how long the VM's control group may be full before that is an error: what
// waits meanwhile is one thread of the VM, which is what the limit is for.
const shortOfMemory = 10 * time.Second

// skip says how many pages to pass by after a page could not be put: one, if it is there or the VM
// has no such memory any more; none, to try again.
func (p *putter) skip(err error, n uint32, deadline *time.Time) (uint32, error) {
	switch {
	case errors.Is(err, unix.EEXIST):
		return 1, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINVAL):
		return 1, nil // unmapped by the VMM, which will see what comes of it
	case errors.Is(err, unix.ESRCH):
		return 0, errGone
	case errors.Is(err, unix.EFAULT):
		return 0, fault.New(fault.DataLoss, "read memory page", fmt.Sprint(n), "the template's file cannot be read")
	case errors.Is(err, unix.ENOMEM):
		if deadline.IsZero() {
			*deadline = time.Now().Add(shortOfMemory)
		}
		if time.Now().After(*deadline) {
			return 0, fault.New(fault.ResourceExhausted, "put memory page", fmt.Sprint(n), "the VM's memory limit leaves no room")
		}
		time.Sleep(time.Millisecond)
		return 0, nil
	default:
		return 0, err // EAGAIN among them
	}
}
