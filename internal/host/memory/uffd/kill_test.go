package uffd

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// kills is how often TestKilledUnderWork kills: 200 in a soak (ROOST_SOAK_SCALE=1).
func kills(t *testing.T) int {
	scale, err := strconv.ParseFloat(os.Getenv("ROOST_SOAK_SCALE"), 64)
	if err != nil {
		return 40
	}
	return max(1, int(200*scale))
}

// supervised is a pager that is attached again whenever it dies.
type supervised struct {
	current  atomic.Pointer[Pager]
	replaced chan struct{}
	done     chan error
}

func (s *saved) supervise(p *Pager, v *vm) *supervised {
	ctx, cancel := context.WithCancel(s.t.Context())
	u := &supervised{replaced: make(chan struct{}, 1), done: make(chan error, 1)}
	u.current.Store(p)
	go func() {
		u.done <- Supervise(ctx, p, s.o, v.proc, func(next *Pager) {
			u.current.Store(next)
			u.replaced <- struct{}{}
		}, func(error) { v.kill() })
	}()
	s.t.Cleanup(func() {
		cancel()
		if err := <-u.done; err != nil {
			s.t.Errorf("supervised: %v", err)
		}
		s.stop(u.current.Load())
	})
	return u
}

func TestKilledUnderWork(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 32768, 3)
	p := s.start()
	v := s.restore(p)
	u := s.supervise(p, v)
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	v.do("read 0 1 1") // a pager that dies before the handshake is written down has no successor
	v.do("work 11 0 6")
	slowest, total := time.Duration(0), kills(t)
	for range total {
		time.Sleep(time.Duration(r.IntN(30_000)) * time.Microsecond) // any moment will do
		lives := s.o.lives()
		start := time.Now()
		kill(t, u.current.Load())
		select {
		case <-u.replaced:
		case err := <-u.done:
			u.done <- err
			t.Fatalf("no longer supervised: %v", err)
		}
		require.Eventually(t, func() bool { return s.o.lives() > lives }, time.Minute, time.Millisecond)
		slowest = max(slowest, time.Since(start))
	}
	v.do("halt")
	v.do("read 0 32768 4")
	st, err := u.current.Load().Stats()
	require.NoError(t, err)
	t.Logf("%d kills, %d page operations, 0 wrong; serving again after at most %v; %+v", total, v.ops(), slowest, st)
	require.Less(t, slowest, 30*time.Second)
	v.kill()
	require.NoError(t, <-u.done)
	u.done <- nil
}

func TestUnwatchedVMHangsAndGoesOn(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 4096, 2)
	p := s.start()
	v := s.restore(p)
	v.do("read 0 500 2")
	kill(t, p)
	<-p.Exited()
	require.Error(t, p.Err())
	v.ask("random 0 4096 4")
	read := make(chan string, 1)
	go func() { read <- v.answer() }()
	require.Never(t, func() bool { return len(read) > 0 }, 300*time.Millisecond, 10*time.Millisecond)
	next, err := Reattach(t.Context(), s.o, v.proc)
	require.NoError(t, err)
	t.Cleanup(func() { s.stop(next) })
	require.Equal(t, "wrong 0", <-read)
}

func TestDeathBeforeTheHandshakeIsWrittenDown(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 1024, 1)
	p := s.start()
	kill(t, p)
	<-p.Exited()
	v := s.vmm("")
	_, err := Reattach(t.Context(), s.o, v.proc)
	require.ErrorContains(t, err, "died before it had written down where the memory is")
}

// A host that cannot start a process for a moment is asked again: a VM that waits can wait for that.
func TestAServerThatCannotBeStartedForAMoment(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 1024, 1)
	exe := filepath.Join(s.dir, "roost")
	s.o.Exe[0] = exe
	require.NoError(t, os.Symlink("/proc/self/exe", exe))
	p := s.start()
	v := s.restore(p)
	u := s.supervise(p, v)
	v.do("read 0 10 1")
	require.NoError(t, os.Remove(exe))
	require.NoError(t, os.WriteFile(exe, nil, 0o600))
	require.NoError(t, os.Remove(s.o.path(logName)))
	kill(t, p)
	require.Eventually(t, func() bool { // the log is made just before the process
		_, err := os.Stat(s.o.path(logName))
		return err == nil
	}, time.Minute, time.Millisecond)
	require.NoError(t, os.Remove(exe))
	require.NoError(t, os.Symlink("/proc/self/exe", exe))
	v.do("read 0 1024 2")
	<-u.replaced
}

// How a server ended says nothing of the one after it.
func TestAnEndIsOfOneServer(t *testing.T) {
	t.Parallel()
	s := newSaved(t, 1024, 1)
	p := s.start()
	v := s.restore(p)
	v.do("read 0 10 1")
	kill(t, p)
	<-p.Exited()
	f, err := os.OpenFile(s.o.path(stateName), os.O_RDWR, 0)
	require.NoError(t, err)
	st, err := mapState(f, 1024)
	require.NoError(t, err)
	st.finish(endDataLoss, "a layer could not be read")
	require.NoError(t, errors.Join(st.close(), f.Close()))
	next, err := Reattach(t.Context(), s.o, v.proc)
	require.NoError(t, err)
	t.Cleanup(func() { s.stop(next) })
	v.do("read 0 1024 1")
	kill(t, next)
	<-next.Exited()
	require.Equal(t, fault.Unavailable, fault.KindOf(next.Err()), "%v", next.Err())
}
