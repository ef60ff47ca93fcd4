package guestproxy

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

const (
	// MaxOutput of each stream that Run keeps.
	MaxOutput = 16 << 20
	inputPart = 256 << 10
	// grace beyond a command's lifetime before Run gives up on a guest that does not end it.
	grace = 15 * time.Second
)

// Result is a command that ended.
type Result struct {
	Exit      Exit
	Stdout    []byte
	Stderr    []byte
	Truncated bool
}

// Run runs a command to its end. When ctx ends first, the process tree is killed.
func (g *Guest) Run(ctx context.Context, c Command, stdin string) (*Result, error) {
	c.Stdin = stdin != ""
	p, err := g.Start(ctx, c)
	if err != nil {
		return nil, expired(err, c)
	}
	defer p.Close()
	ctx, cancel := bound(ctx, c.Timeout)
	defer cancel()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = p.Kill(ctx) // the stream's end is what counts
		p.Close()
	})
	feeding := make(chan struct{})
	go func() { defer close(feeding); p.feed(ctx, stdin) }()
	result, err := collect(p)
	if !stop() {
		<-killed // nothing of a command outlives its caller
		err = fault.Wrap(ctx.Err(), "run "+c.Cmd[0], "in sandbox "+g.id)
	}
	cancel()
	<-feeding
	if err != nil {
		return nil, expired(err, c)
	}
	return result, nil
}

// bound guards against a guest that forgets a lifetime.
func bound(ctx context.Context, lifetime time.Duration) (context.Context, context.CancelFunc) {
	if lifetime <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, lifetime+grace)
}

// feed writes the input; a process that does not read it to its end is not in error.
func (p *Process) feed(ctx context.Context, stdin string) {
	if stdin == "" {
		return
	}
	for rest := []byte(stdin); len(rest) > 0; {
		part := rest[:min(len(rest), inputPart)]
		if p.Write(ctx, part) != nil {
			return
		}
		rest = rest[len(part):]
	}
	_ = p.CloseStdin(ctx)
}

// collect reads to the end, keeps the beginning of each stream and drains the rest.
func collect(p *Process) (*Result, error) {
	var out, errs bytes.Buffer
	r := &Result{}
	for {
		ev, err := p.Next()
		if err != nil {
			return nil, err
		}
		if ev.Exit != nil {
			r.Exit, r.Stdout, r.Stderr = *ev.Exit, out.Bytes(), errs.Bytes()
			return r, nil
		}
		buf := &out
		if ev.Stream == Stderr {
			buf = &errs
		}
		keep := min(len(ev.Data), MaxOutput-buf.Len())
		buf.Write(ev.Data[:keep])
		r.Truncated = r.Truncated || keep < len(ev.Data)
	}
}

// expired says in the caller's words that a command's time was up.
func expired(err error, c Command) error {
	if !fault.Is(err, fault.DeadlineExceeded) || c.Timeout <= 0 {
		return err
	}
	return fault.New(fault.DeadlineExceeded, "run", c.Cmd[0],
		fmt.Sprintf("it ran longer than %s and was killed", c.Timeout)).
		WithHint("give more time with timeout_s, 0 = no end")
}
