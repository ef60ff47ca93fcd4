package guestproxy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/undo"
)

// Size of a terminal.
type Size struct{ Cols, Rows uint32 }

// Command is what to start.
type Command struct {
	Cmd     []string
	Env     map[string]string
	Cwd     string
	Stdin   bool
	PTY     *Size
	Timeout time.Duration // the process's lifetime; 0 = no end
}

// Exit is how a process ended. Code is 128 + the signal's number after a signal.
type Exit struct {
	Code   int
	Signal string
	Error  string
}

// Stream names a process's output.
type Stream byte

// The streams, as the WebSocket protocol numbers them.
const (
	Stdin  Stream = 0
	Stdout Stream = 1
	Stderr Stream = 2
	TTY    Stream = 3
)

// Event is one thing that a process did: output, or at last its end.
type Event struct {
	Stream Stream
	Data   []byte
	Exit   *Exit
}

// Process is a process whose events are read.
type Process struct {
	PID    uint32
	guest  *Guest
	pty    atomic.Bool
	next   func() (*process.ProcessEvent, error)
	cancel context.CancelFunc
}

// Start starts a command and returns when it runs. Cancelling ctx before that does not
// leave a process behind: the start is awaited and the process killed. After that ctx has
// no say; Close ends the reading.
func (g *Guest) Start(ctx context.Context, c Command) (*Process, error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	type answer struct {
		p   *Process
		err error
	}
	started := make(chan answer, 1)
	go func() {
		p, err := g.start(run, cancel, c)
		started <- answer{p, err}
	}()
	select {
	case a := <-started:
		return a.p, a.err
	case <-ctx.Done():
	}
	// The request may have reached the guest already: a cancelled stream would leave the
	// process it starts without an owner.
	limit := time.AfterFunc(undo.Timeout, cancel)
	defer limit.Stop()
	a := <-started
	if a.p != nil {
		_ = a.p.Kill(ctx) // nobody is left to tell
		a.p.Close()
	}
	return nil, fault.Wrap(ctx.Err(), "start", c.Cmd[0])
}

func (g *Guest) start(run context.Context, cancel context.CancelFunc, c Command) (*Process, error) {
	req := request(g, startRequest(c))
	if c.Timeout > 0 {
		// The header, not the context: it is the process's lifetime, enforced by the guest.
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(c.Timeout.Milliseconds(), 10))
	}
	stream, err := g.process.Start(run, req)
	if err != nil {
		cancel()
		return nil, g.callError(err, "start", c.Cmd[0])
	}
	next := func() (*process.ProcessEvent, error) {
		return receive(stream, (*process.StartResponse).GetEvent)
	}
	return g.open(next, cancel, "start "+c.Cmd[0], c.PTY != nil)
}

func startRequest(c Command) *process.StartRequest {
	tag, stdin := "roost-"+strings.ToLower(rand.Text()), c.Stdin
	req := &process.StartRequest{
		Process: &process.ProcessConfig{Cmd: c.Cmd[0], Args: c.Cmd[1:], Envs: c.Env},
		Tag:     &tag, Stdin: &stdin,
	}
	if c.Cwd != "" {
		req.Process.Cwd = &c.Cwd
	}
	if c.PTY != nil {
		req.Pty = &process.PTY{Size: &process.PTY_Size{Cols: c.PTY.Cols, Rows: c.PTY.Rows}}
	}
	return req
}

// Attach reads the further events of a process that runs, or has just ended.
func (g *Guest) Attach(ctx context.Context, pid uint32) (*Process, error) {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	object := fmt.Sprintf("process %d", pid)
	stream, err := g.process.Connect(run, request(g, &process.ConnectRequest{Process: byPID(pid)}))
	if err != nil {
		cancel()
		return nil, g.callError(err, "connect to", object)
	}
	next := func() (*process.ProcessEvent, error) {
		return receive(stream, (*process.ConnectResponse).GetEvent)
	}
	return g.open(next, cancel, "connect to "+object, false)
}

// open reads the start event.
func (g *Guest) open(next func() (*process.ProcessEvent, error), cancel context.CancelFunc, op string, pty bool) (*Process, error) {
	for {
		ev, err := next()
		if err != nil {
			cancel()
			return nil, g.callError(err, op, "")
		}
		if s := ev.GetStart(); s != nil {
			p := &Process{PID: s.GetPid(), guest: g, next: next, cancel: cancel}
			p.pty.Store(pty)
			return p, nil
		}
		if ev.GetKeepalive() == nil {
			cancel()
			return nil, fault.New(fault.Internal, op, "", "the guest's first event is not the start")
		}
	}
}

// receive reads one message of either kind of stream.
func receive[M any](s *connect.ServerStreamForClient[M], event func(*M) *process.ProcessEvent) (*process.ProcessEvent, error) {
	if s.Receive() {
		return event(s.Msg()), nil
	}
	err := s.Err()
	_ = s.Close()
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		// The sandbox was paused, or it ended: a guest does not end by itself in the middle.
		err = fault.New(fault.Unavailable, "", "", "the sandbox was paused or ended before the process did").
			WithHint("`roost info ID` says which, and why")
	}
	return nil, err
}

// Next returns the next output, or the end of the process, after which there is nothing.
func (p *Process) Next() (Event, error) {
	for {
		ev, err := p.next()
		if err != nil {
			return Event{}, p.guest.callError(err, "run process", strconv.FormatUint(uint64(p.PID), 10))
		}
		if end := ev.GetEnd(); end != nil {
			return Event{Exit: exitOf(end)}, nil
		}
		switch out := ev.GetData().GetOutput().(type) {
		case *process.ProcessEvent_DataEvent_Stdout:
			return Event{Stream: Stdout, Data: out.Stdout}, nil
		case *process.ProcessEvent_DataEvent_Stderr:
			return Event{Stream: Stderr, Data: out.Stderr}, nil
		case *process.ProcessEvent_DataEvent_Pty:
			p.pty.Store(true)
			return Event{Stream: TTY, Data: out.Pty}, nil
		}
	}
}

// Close ends the reading. The process goes on.
func (p *Process) Close() { p.cancel() }

func byPID(pid uint32) *process.ProcessSelector {
	return &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
}

// Write gives input to the process.
func (p *Process) Write(ctx context.Context, data []byte) error {
	in := &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: data}}
	if p.pty.Load() {
		in = &process.ProcessInput{Input: &process.ProcessInput_Pty{Pty: data}}
	}
	_, err := p.guest.process.SendInput(ctx, request(p.guest,
		&process.SendInputRequest{Process: byPID(p.PID), Input: in}))
	return p.guest.callError(err, "write to", p.object())
}

// CloseStdin ends the process's input.
func (p *Process) CloseStdin(ctx context.Context) error {
	_, err := p.guest.process.CloseStdin(ctx, request(p.guest, &process.CloseStdinRequest{Process: byPID(p.PID)}))
	return p.guest.callError(err, "close input of", p.object())
}

// Resize changes the terminal.
func (p *Process) Resize(ctx context.Context, s Size) error {
	_, err := p.guest.process.Update(ctx, request(p.guest, &process.UpdateRequest{Process: byPID(p.PID),
		Pty: &process.PTY{Size: &process.PTY_Size{Cols: s.Cols, Rows: s.Rows}}}))
	return p.guest.callError(err, "resize terminal of", p.object())
}

// Signal sends a signal by number.
func (p *Process) Signal(ctx context.Context, sig process.Signal) error {
	_, err := p.guest.process.SendSignal(ctx, request(p.guest,
		&process.SendSignalRequest{Process: byPID(p.PID), Signal: sig}))
	return p.guest.callError(err, "signal", p.object())
}

// Kill kills the process tree even when ctx has ended; a process that is gone is no failure.
func (p *Process) Kill(ctx context.Context) error {
	return p.hangUp(ctx, process.Signal_SIGNAL_SIGKILL)
}

// HangUp tells the process that its terminal went away, even when ctx has ended.
func (p *Process) HangUp(ctx context.Context) error {
	return p.hangUp(ctx, process.Signal_SIGNAL_SIGHUP)
}

func (p *Process) hangUp(ctx context.Context, sig process.Signal) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	if err := p.Signal(ctx, sig); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

func (p *Process) object() string { return fmt.Sprintf("process %d", p.PID) }

// callError keeps the guest's kind and says where it happened.
func (g *Guest) callError(err error, op, object string) error {
	return fault.Wrap(fault.FromConnect(err), op, strings.TrimSpace(object+" in sandbox "+g.id))
}
