package process

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/cgroup"
)

// drainFor is how long after the exit a background descendant may keep the output open.
const drainFor = 2 * time.Second

// Process is a started process.
type Process struct {
	manager *Manager
	spec    Spec
	cwd     string
	pid     int
	leaf    *cgroup.Leaf
	streams *streams
	input   input
	started time.Time
	expiry  *time.Timer
	expired atomic.Bool

	mu      sync.Mutex
	subs    map[*Subscription]struct{}
	tail    tail
	ended   bool
	end     End
	endedAt time.Time
}

// End is how a process ended.
type End struct {
	// Code is the exit code; -1 when a signal ended the process.
	Code   int
	Exited bool
	// Status reads "exit status 1" or "signal: killed".
	Status string
}

func newProcess(m *Manager, spec Spec, cwd string, leaf *cgroup.Leaf, s *streams) *Process {
	return &Process{
		manager: m, spec: spec, cwd: cwd, leaf: leaf, streams: s, started: time.Now(),
		input: newInput(s.in), subs: map[*Subscription]struct{}{},
	}
}

// PID of the process.
func (p *Process) PID() int { return p.pid }

// Expired says that the process was killed because its lifetime was over.
func (p *Process) Expired() bool { return p.expired.Load() }

// run starts the pumps and the wait.
func (p *Process) run(exited <-chan syscall.WaitStatus) {
	var pumps sync.WaitGroup
	if p.streams.terminal != nil {
		pumps.Go(func() { p.pump(Terminal, p.streams.terminal) })
	} else {
		pumps.Go(func() { p.pump(Stdout, p.streams.out) })
		pumps.Go(func() { p.pump(Stderr, p.streams.err) })
	}
	if !p.spec.Deadline.IsZero() {
		p.expiry = time.AfterFunc(time.Until(p.spec.Deadline), p.expire)
	}
	go p.finish(exited, &pumps)
}

func (p *Process) expire() {
	p.expired.Store(true)
	_ = p.leaf.Kill()
}

func (p *Process) finish(exited <-chan syscall.WaitStatus, pumps *sync.WaitGroup) {
	status := <-exited
	if p.expiry != nil {
		p.expiry.Stop()
	}
	stop := time.Now().Add(drainFor)
	for _, f := range []*os.File{p.streams.out, p.streams.err, p.streams.terminal} {
		if f != nil {
			_ = f.SetReadDeadline(stop)
		}
	}
	pumps.Wait()
	p.streams.closeAll()
	p.leaf.Remove()
	p.tellEnd(describe(status))
	p.manager.retire(p)
}

func (p *Process) tellEnd(end End) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.end, p.endedAt = true, end, time.Now()
	for sub := range p.subs {
		close(sub.out) // the pumps have gone: nobody sends any more
	}
	p.subs = nil
	p.manager.activity.Touch()
}

// Ended returns how the process ended, once it has.
func (p *Process) Ended() (End, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.end, p.ended
}

// Kill ends the process and all its descendants.
func (p *Process) Kill() error {
	if _, ended := p.Ended(); ended {
		return p.gone("kill")
	}
	return p.leaf.Kill()
}

// Signal sends a signal to the process group, or to the foreground group of a terminal. Where
// the kernel does not tell which that is (gVisor), a signal that has a key is typed, and any
// other goes to the group of the process itself.
func (p *Process) Signal(sig syscall.Signal) error {
	if sig == syscall.SIGKILL {
		return p.Kill()
	}
	group := p.pid
	if p.streams.terminal != nil {
		fg, err := foreground(p.streams.terminal)
		switch {
		case err == nil && fg > 0:
			group = fg
		case p.typed(sig):
			return nil
		}
	}
	err := p.manager.reaper.Signal(p.pid, -group, sig)
	if errors.Is(err, syscall.ESRCH) {
		return p.gone("signal")
	}
	return account.FromOS(err, "signal process", p.spec.Cmd)
}

// Resize gives the terminal a new size.
func (p *Process) Resize(size Size) error {
	if p.streams.terminal == nil {
		return fault.New(fault.FailedPrecondition, "resize process", "'"+p.spec.Cmd+"'", "it has no terminal")
	}
	err := setSize(p.streams.terminal, size)
	if _, ended := p.Ended(); ended && err != nil {
		return p.gone("resize")
	}
	return account.FromOS(err, "resize process", "'"+p.spec.Cmd+"'")
}

func (p *Process) gone(op string) error {
	return fault.New(fault.NotFound, op+" process", "'"+p.spec.Cmd+"'", "it has ended")
}
