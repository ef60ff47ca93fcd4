package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// lastWords is how long a command has to end after its terminal or output went away.
const lastWords = 2 * time.Second

// remote is a command in a sandbox joined to this process: its output goes to out, input
// comes from in, and signals are passed on.
//
// It ends with the command. It ends sooner when the connection is cut, on the Ctrl-C after a
// SIGKILL, and lastWords after this side was hung up or its stdout closed.
type remote struct {
	id    string
	start v1.ExecStart
	in    io.Reader // nil: no input
	out   sink

	stream   *stream
	controls chan control
	abort    context.CancelCauseFunc
}

// sink takes what a command gives.
type sink interface {
	started(pid int) error
	output(stream byte, data []byte) error
	exited(exit v1.ExecExit) error
}

// run runs the command to its end and returns the error whose code this process exits with.
func (r *remote) run(ctx context.Context, c *client) error {
	ctx, r.abort = context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer r.abort(nil)
	r.controls = make(chan control, 64)
	signals := catchSignals(r)
	defer signals.stop()
	tasks.Go(func() { signals.loop(ctx) })

	var err error
	if r.stream, err = c.startStream(ctx, r.id, r.start); err != nil {
		return r.failed(ctx, err)
	}
	defer r.stream.close()
	tasks.Go(func() { r.sendControls(ctx) })
	tasks.Go(func() { r.stream.keepAlive(ctx) })
	exit, err := r.follow(ctx, signals)
	if err != nil {
		return r.failed(ctx, err)
	}
	return r.ended(exit)
}

// failed chooses the exit code of a run that did not see the command's end.
func (r *remote) failed(ctx context.Context, err error) error {
	var exit *exitError
	if errors.As(context.Cause(ctx), &exit) || errors.As(err, &exit) {
		return exit
	}
	return &exitError{code: exitRoost, err: on(r.id, err)}
}

// ended turns the remote exit into this process's.
func (r *remote) ended(exit v1.ExecExit) error {
	message := text(exit.Error)
	switch {
	case message != "" && exit.ExitCode == 0:
		return &exitError{code: exitRoost, err: on(r.id, fault.New(fault.Internal, "", "", message))}
	case message != "":
		return &exitError{code: exit.ExitCode, err: on(r.id, fault.New(fault.Aborted, "", "", message))}
	case exit.ExitCode != 0:
		return &exitError{code: exit.ExitCode}
	default:
		return nil
	}
}

// follow passes events on until the command's end.
func (r *remote) follow(ctx context.Context, signals *signals) (v1.ExecExit, error) {
	for {
		e, err := r.stream.next(ctx)
		if err != nil {
			return v1.ExecExit{}, err
		}
		switch {
		case e.Error != nil:
			return v1.ExecExit{}, fromAPI(*e.Error)
		case e.Exit != nil:
			return *e.Exit, r.wrote(ctx, r.out.exited(*e.Exit))
		case e.Started != nil:
			signals.running.Store(true)
			err = r.out.started(e.Started.PID)
			r.startInput(ctx)
		case len(e.Data) > 0:
			err = r.out.output(e.Stream, e.Data)
		}
		if err := r.wrote(ctx, err); err != nil {
			return v1.ExecExit{}, err
		}
	}
}

// wrote handles a failed write of output. When the reader of our stdout has gone (as with
// `| head`), the command is told to end and we end as a writer to a closed pipe does; the
// command gets lastWords to go quietly.
func (r *remote) wrote(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if !errors.Is(err, syscall.EPIPE) {
		return fault.Wrap(err, "write", "the command's output")
	}
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	_ = r.stream.send(wait, control{Signal: "SIGTERM"})
	for {
		if e, err := r.stream.next(wait); err != nil || e.Exit != nil {
			return &exitError{code: 128 + int(syscall.SIGPIPE)}
		}
	}
}

// startInput begins to copy input. Its goroutine may stay blocked in a read of stdin when the
// command ends; the process ends then.
func (r *remote) startInput(ctx context.Context) {
	if r.in == nil {
		return
	}
	in := r.in
	r.in = nil
	go r.copyInput(ctx, in)
}

func (r *remote) copyInput(ctx context.Context, in io.Reader) {
	buf := make([]byte, frameData)
	lineOpen := false
	for {
		n, err := in.Read(buf)
		if n > 0 {
			lineOpen = buf[n-1] != '\n'
			if r.stream.input(ctx, buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			r.endInput(ctx, lineOpen)
			return
		}
	}
}

// endInput says that input ended. A terminal knows this as a Ctrl-D, which ends an open line
// first and only then the input.
func (r *remote) endInput(ctx context.Context, lineOpen bool) {
	switch {
	case r.start.Pty == nil:
		_ = r.stream.send(ctx, control{StdinEOF: true})
	case lineOpen:
		_ = r.stream.input(ctx, []byte{4, 4})
	default:
		_ = r.stream.input(ctx, []byte{4})
	}
}

// control queues a message to the server; the signal loop never waits for the network.
func (r *remote) control(c control) {
	select {
	case r.controls <- c:
	default: // 64 unsent messages: the connection stands still, and so does the server.
	}
}

func (r *remote) sendControls(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-r.controls:
			if r.stream.send(ctx, c) != nil {
				return
			}
		}
	}
}

// plainSink writes output as it comes, unbuffered.
type plainSink struct{}

func (plainSink) started(int) error        { return nil }
func (plainSink) exited(v1.ExecExit) error { return nil }

func (plainSink) output(stream byte, data []byte) error {
	w := os.Stdout
	if stream == streamStderr {
		w = os.Stderr
	}
	_, err := w.Write(data)
	return err
}

// jsonSink writes JSON lines; data is base64, as in the API.
type jsonSink struct{}

type outputLine struct {
	Stdout   []byte `json:"stdout,omitempty"`
	Stderr   []byte `json:"stderr,omitempty"`
	Terminal []byte `json:"terminal,omitempty"`
}

func (jsonSink) started(pid int) error {
	return printLine(os.Stdout, map[string]map[string]int{"started": {"pid": pid}})
}

func (jsonSink) exited(exit v1.ExecExit) error {
	return printLine(os.Stdout, map[string]v1.ExecExit{"exit": exit})
}

func (jsonSink) output(stream byte, data []byte) error {
	switch stream {
	case streamStderr:
		return printLine(os.Stdout, outputLine{Stderr: data})
	case streamTerminal:
		return printLine(os.Stdout, outputLine{Terminal: data})
	default:
		return printLine(os.Stdout, outputLine{Stdout: data})
	}
}
