// Package reaper is the only caller of wait in roost-guest. As PID 1 it must wait for every
// orphan of the VM and may not lose the status of its own children while doing so; two waiters
// would steal from each other. So a child is started, signalled and reaped under one lock:
//
//   - Start forks with the lock shared, and registers the pid before the reaper may take it;
//   - the reaper waits with the lock held, so a status always finds its owner;
//   - Signal holds the lock shared: a registered pid is alive or a zombie, never recycled.
//
// Nothing else here may use os/exec or os.Process.Wait.
package reaper

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper waits for children. Make one with NewInit (waits for everybody) or NewOwn (waits for
// the children it started only, for a process that is not PID 1).
type Reaper struct {
	mu       sync.RWMutex
	children map[int]chan syscall.WaitStatus
	register sync.Mutex // children has writers under the shared lock
	init     bool
}

// NewOwn makes a reaper that leaves other children of this process alone.
func NewOwn() *Reaper {
	return &Reaper{children: map[int]chan syscall.WaitStatus{}}
}

// NewInit makes a reaper of every child and orphan of this process until ctx ends.
func NewInit(ctx context.Context) *Reaper {
	r := NewOwn()
	r.init = true
	wake := make(chan os.Signal, 1)
	signal.Notify(wake, syscall.SIGCHLD)
	go r.loop(ctx, wake)
	return r
}

// Start runs fork, which must start a child and return its pid. The channel gets the child's
// status once.
func (r *Reaper) Start(fork func() (int, error)) (int, <-chan syscall.WaitStatus, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	ended := make(chan syscall.WaitStatus, 1)
	r.register.Lock()
	r.children[pid] = ended
	r.register.Unlock()
	if !r.init {
		go r.waitOne(pid)
	}
	return pid, ended, nil
}

// Signal sends sig to target (a pid or, negative, a process group) if child has not been
// reaped; otherwise it returns ESRCH and signals nobody.
func (r *Reaper) Signal(child, target int, sig syscall.Signal) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	r.register.Lock()
	_, alive := r.children[child]
	r.register.Unlock()
	if !alive {
		return syscall.ESRCH
	}
	return syscall.Kill(target, sig)
}

func (r *Reaper) loop(ctx context.Context, wake chan os.Signal) {
	defer signal.Stop(wake)
	for {
		for r.reap(-1) {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		}
	}
}

// reap takes one zombie, if there is one.
func (r *Reaper) reap(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status syscall.WaitStatus
	got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
	if err == syscall.EINTR {
		return true
	}
	if err != nil || got <= 0 {
		return false
	}
	if ended, ours := r.children[got]; ours {
		delete(r.children, got)
		ended <- status
	}
	return true
}

// waitOne sleeps until the child is a zombie, leaving it one (WNOWAIT) so that the pid stays
// taken until the lock is held.
func (r *Reaper) waitOne(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	r.reap(pid)
}
