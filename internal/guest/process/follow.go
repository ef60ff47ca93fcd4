package process

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	pb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/internal/fault"
)

// defaultKeepalive is how long a stream may be silent when the client says nothing.
const defaultKeepalive = 90 * time.Second

// follower sends a process's events to one client: start first, end last.
type follower struct {
	process *Process
	sub     *Subscription
	owner   bool // the stream's deadline is the process's lifetime
	idle    time.Duration
	send    func(*pb.ProcessEvent) error
}

func (f *follower) follow(ctx context.Context) error {
	defer f.sub.Detach()
	start := &pb.ProcessEvent_StartEvent{Pid: uint32(f.process.pid)}
	if err := f.send(&pb.ProcessEvent{Event: &pb.ProcessEvent_Start{Start: start}}); err != nil {
		return err
	}
	quiet := time.NewTimer(f.idle)
	defer quiet.Stop()
	for {
		select {
		case out, open := <-f.sub.Output():
			if !open {
				return f.finish()
			}
			if err := f.send(event(out)); err != nil {
				return err
			}
		case <-quiet.C:
			alive := &pb.ProcessEvent{Event: &pb.ProcessEvent_Keepalive{Keepalive: &pb.ProcessEvent_KeepAlive{}}}
			if err := f.send(alive); err != nil {
				return err
			}
		case <-ctx.Done():
			return f.stopped(ctx)
		}
		quiet.Reset(f.idle)
	}
}

// stopped: the client went away, or the time is over. Then the kill that comes with it ends
// the output soon, and what is left of it is still sent.
func (f *follower) stopped(ctx context.Context) error {
	if !f.owner || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ctx.Err()
	}
	bound := time.After(drainFor + time.Second)
	for {
		select {
		case out, open := <-f.sub.Output():
			if !open {
				return f.timeUp()
			}
			if err := f.send(event(out)); err != nil {
				return err
			}
		case <-bound:
			return f.timeUp()
		}
	}
}

func (f *follower) finish() error {
	if f.owner && f.process.Expired() {
		return f.timeUp()
	}
	end, _ := f.process.Ended()
	out := &pb.ProcessEvent_EndEvent{ExitCode: int32(end.Code), Exited: end.Exited, Status: end.Status}
	if end.Code != 0 {
		out.Error = &end.Status
	}
	return f.send(&pb.ProcessEvent{Event: &pb.ProcessEvent_End{End: out}})
}

func (f *follower) timeUp() error {
	return fault.New(fault.DeadlineExceeded, "run process", "'"+f.process.spec.Cmd+"'", "its time is over and it was killed").
		WithHint("Give it a longer timeout, or 0 for none.")
}

func event(o Output) *pb.ProcessEvent {
	data := &pb.ProcessEvent_DataEvent{}
	switch o.Stream {
	case Stdout:
		data.Output = &pb.ProcessEvent_DataEvent_Stdout{Stdout: o.Data}
	case Stderr:
		data.Output = &pb.ProcessEvent_DataEvent_Stderr{Stderr: o.Data}
	case Terminal:
		data.Output = &pb.ProcessEvent_DataEvent_Pty{Pty: o.Data}
	}
	return &pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: data}}
}

func keepalive(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds < 1 || seconds > 86400 {
		return defaultKeepalive
	}
	return time.Duration(seconds) * time.Second
}
