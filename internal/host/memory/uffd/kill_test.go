package uffd

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
