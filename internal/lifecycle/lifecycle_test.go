package lifecycle

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// service counts.
type service struct {
	Base
	name   string
	fail   error
	mu     *sync.Mutex
	events *[]string
	ended  int
}

func (s *service) tell(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*s.events = append(*s.events, what+" "+s.name)
}

func (s *service) Start(ctx context.Context) error {
	run, ok, err := s.Begin(ctx)
	if err != nil || !ok {
		return err
	}
	s.tell("start")
	s.Go(func() {
		<-run.Done()
		s.ended++
	})
	return s.fail
}

func (s *service) Stop() {
	s.Base.Stop()
	s.tell("stop")
}

func services(names ...string) ([]*service, *[]string) {
	var out []*service
	mu, events := &sync.Mutex{}, &[]string{}
	for _, name := range names {
		out = append(out, &service{name: name, mu: mu, events: events})
	}
	return out, events
}

func TestStartAndStopTwice(t *testing.T) {
	t.Parallel()
	all, events := services("a")
	s := all[0]
	require.Nil(t, s.Done())
	require.NoError(t, s.Start(t.Context()))
	require.NoError(t, s.Start(t.Context()))
	require.Equal(t, []string{"start a"}, *events)
	select {
	case <-s.Done():
		t.Fatal("it runs")
	default:
	}
	s.Stop()
	s.Stop()
	<-s.Done()
	require.Equal(t, 1, s.ended, "Stop waits for what runs")
	require.ErrorIs(t, s.Start(t.Context()), ErrStopped)
}

func TestStopBeforeStart(t *testing.T) {
	t.Parallel()
	all, _ := services("a")
	all[0].Stop()
	require.ErrorIs(t, all[0].Start(t.Context()), ErrStopped)
}

// A service outlives the context of its start: that only bounds the starting.
func TestStartsContextDoesNotEndIt(t *testing.T) {
	t.Parallel()
	all, _ := services("a")
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, all[0].Start(ctx))
	cancel()
	select {
	case <-all[0].Done():
		t.Fatal("it ended")
	default:
	}
	all[0].Stop()
}

func TestCallIsCancelledAndWaitedFor(t *testing.T) {
	t.Parallel()
	all, _ := services("a")
	s := all[0]
	require.NoError(t, s.Start(t.Context()))
	ctx, done, err := s.Call(t.Context())
	require.NoError(t, err)
	undone := false
	go func() {
		<-ctx.Done()
		undone = true
		done()
		done()
	}()
	s.Stop()
	require.True(t, undone)
	require.ErrorIs(t, context.Cause(ctx), ErrStopped)
	_, _, err = s.Call(t.Context())
	require.ErrorIs(t, err, ErrStopped)
}

func TestCallEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	var b Base // not even started
	parent, cancel := context.WithCancel(t.Context())
	ctx, done, err := b.Call(parent)
	require.NoError(t, err)
	cancel()
	<-ctx.Done()
	require.ErrorIs(t, context.Cause(ctx), context.Canceled)
	done()
	b.Stop()
}

func TestStartAllStopsWhatStartedWhenOneFails(t *testing.T) {
	t.Parallel()
	all, events := services("a", "b", "c")
	broken := errors.New("broken")
	all[2].fail = broken
	require.ErrorIs(t, StartAll(t.Context(), all[0], all[1], all[2]), broken)
	all[2].Base.Stop()
	require.Equal(t, []string{"start a", "start b", "start c", "stop b", "stop a"}, *events)
}

func TestStopAllIsInReverse(t *testing.T) {
	t.Parallel()
	all, events := services("a", "b")
	require.NoError(t, StartAll(t.Context(), all[0], all[1]))
	StopAll(all[0], all[1])
	require.Equal(t, []string{"start a", "start b", "stop b", "stop a"}, *events)
}
