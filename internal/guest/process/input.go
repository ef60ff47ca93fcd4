package process

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
)

// input writes to a process, one writer at a time.
type input struct {
	turn chan struct{}
	file *os.File // nil without input, or once closed
}

func newInput(f *os.File) input { return input{turn: make(chan struct{}, 1), file: f} }

// lock waits for the turn: a process that does not read holds up the writer before.
func (i *input) lock(ctx context.Context) error {
	select {
	case i.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *input) unlock() { <-i.turn }

// Write writes all of data to the input, or to the terminal.
func (p *Process) Write(ctx context.Context, data []byte, terminal bool) error {
	if terminal != (p.streams.terminal != nil) {
		return fault.New(fault.FailedPrecondition, "write to process", "'"+p.spec.Cmd+"'", wrongInput(terminal))
	}
	if err := p.input.lock(ctx); err != nil {
		return fault.Wrap(err, "write to process", "'"+p.spec.Cmd+"'")
	}
	defer p.input.unlock()
	if p.input.file == nil {
		return fault.New(fault.FailedPrecondition, "write to process", "'"+p.spec.Cmd+"'", "its input is closed")
	}
	return p.writeError(ctx, writeAll(ctx, p.input.file, data))
}

// CloseInput ends the input.
func (p *Process) CloseInput(ctx context.Context) error {
	if p.streams.terminal != nil {
		return fault.New(fault.FailedPrecondition, "close input of process", "'"+p.spec.Cmd+"'", "it has a terminal; send it Ctrl-D (4)")
	}
	if err := p.input.lock(ctx); err != nil {
		return fault.Wrap(err, "close input of process", "'"+p.spec.Cmd+"'")
	}
	defer p.input.unlock()
	if p.input.file != nil {
		_ = p.input.file.Close()
		p.input.file = nil
	}
	return nil
}

// writeAll writes until ctx ends.
func writeAll(ctx context.Context, f *os.File, data []byte) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = f.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	_, err := io.Writer(f).Write(data)
	if !stop() {
		<-interrupted
		_ = f.SetWriteDeadline(time.Time{})
	}
	return err
}

func (p *Process) writeError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fault.Wrap(ctx.Err(), "write to process", "'"+p.spec.Cmd+"'")
	case errors.Is(err, os.ErrClosed):
		return p.gone("write to")
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.EIO):
		return fault.New(fault.FailedPrecondition, "write to process", "'"+p.spec.Cmd+"'", "it no longer reads its input")
	default:
		return account.FromOS(err, "write to process", "'"+p.spec.Cmd+"'")
	}
}

func wrongInput(terminal bool) string {
	if terminal {
		return "it has no terminal; send stdin"
	}
	return "it has a terminal; send pty"
}
