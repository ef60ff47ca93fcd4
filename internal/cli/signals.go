package cli

import (
	"context"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"
)

// killWithin is how soon a second Ctrl-C must follow the first to mean "kill it".
const killWithin = 2 * time.Second

// escalation is what successive Ctrl-C mean: SIGINT; within killWithin SIGKILL; after that
// nothing (""), which is when the caller gives up waiting.
type escalation struct {
	last   time.Time
	killed bool
}

func (e *escalation) next(now time.Time) string {
	second := !e.last.IsZero() && now.Sub(e.last) <= killWithin
	e.last = now
	switch {
	case e.killed:
		return ""
	case second:
		e.killed = true
		return "SIGKILL"
	default:
		return "SIGINT"
	}
}

// signals passes this process's signals to a remote command.
type signals struct {
	r       *remote
	ch      chan os.Signal
	running atomic.Bool
	ctrlC   escalation
}

// catchSignals takes over signal handling until stop. SIGPIPE is caught so that a write to a
// closed stdout is an error to handle rather than our sudden death.
func catchSignals(r *remote) *signals {
	s := &signals{r: r, ch: make(chan os.Signal, 16)}
	signal.Notify(s.ch, heeded(syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)...)
	if r.start.Pty != nil {
		signal.Notify(s.ch, syscall.SIGWINCH)
	}
	return s
}

func (s *signals) stop() { signal.Stop(s.ch) }

func (s *signals) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-s.ch:
			s.handle(ctx, sig.(syscall.Signal))
		}
	}
}

func (s *signals) handle(ctx context.Context, sig syscall.Signal) {
	switch {
	case sig == syscall.SIGPIPE: // The write itself failed with EPIPE.
	case sig == syscall.SIGWINCH:
		if size, ok := terminalSize(); ok {
			s.r.control(control{Resize: &size})
		}
	case !s.running.Load():
		s.r.abort(&exitError{code: 128 + int(sig)})
	case sig == syscall.SIGINT:
		s.interrupt()
	case s.r.start.Pty != nil:
		s.hangUp(ctx, sig)
	default:
		s.r.control(control{Signal: signalName(sig)})
	}
}

func (s *signals) interrupt() {
	name := s.ctrlC.next(time.Now())
	if name == "" {
		s.r.abort(&exitError{code: exitInterrupt})
		return
	}
	s.r.control(control{Signal: name})
}

// hangUp tells a command on a terminal that its terminal goes away. Interactive shells ignore
// SIGTERM, so it is SIGHUP whatever we got; and we do not wait for ever.
func (s *signals) hangUp(ctx context.Context, sig syscall.Signal) {
	s.r.control(control{Signal: "SIGHUP"})
	time.AfterFunc(lastWords, func() {
		if ctx.Err() == nil {
			s.r.abort(&exitError{code: 128 + int(sig)})
		}
	})
}

func signalName(sig syscall.Signal) string {
	switch sig {
	case syscall.SIGHUP:
		return "SIGHUP"
	case syscall.SIGQUIT:
		return "SIGQUIT"
	default:
		return "SIGTERM"
	}
}
