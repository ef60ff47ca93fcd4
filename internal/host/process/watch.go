package process

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// watch waits on the runtime's poller: a pidfd is readable once its process has ended, so a
// thousand VMs cost a thousand goroutines and no thread.
func (p *Process) watch() {
	go func() {
		raw, err := p.pidfd.SyscallConn()
		if err != nil {
			return // released
		}
		ended := false
		err = raw.Read(func(fd uintptr) bool {
			ended = readable(int(fd))
			return ended
		})
		if err != nil || !ended {
			return // released
		}
		_ = raw.Control(func(fd uintptr) { p.status = p.reap(int(fd)) })
		p.status.At = time.Now()
		close(p.done)
		p.Release()
	}()
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// reap collects a child's status. That of a process which is nobody's child here it reads from the
// zombie or, where the real parent was faster, asks the pidfd for.
func (p *Process) reap(pidfd int) Status {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED, nil)
	for errors.Is(err, unix.EINTR) {
		err = unix.Waitid(unix.P_PIDFD, pidfd, &info, unix.WEXITED, nil)
	}
	if err == nil {
		return fromSiginfo(&info)
	}
	st, err := readStat(p.PID)
	if err == nil && st.state == "Z" && st.startTime == p.StartTime {
		return fromWait(unix.WaitStatus(st.exitCode))
	}
	waitReaped(pidfd)
	exit := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &exit); err != nil || exit.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return Status{Code: -1}
	}
	return fromWait(unix.WaitStatus(exit.Exit_code))
}

// waitReaped gives the real parent (init, when the agent that was it has died) a moment to
// reap: only then does the pidfd hang up and tell the exit status.
func waitReaped(pidfd int) {
	const moment = 100 // ms
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd)}}, moment)
}

func fromWait(w unix.WaitStatus) Status {
	if w.Signaled() {
		return Status{Known: true, Code: -1, Signal: w.Signal()}
	}
	return Status{Known: true, Code: w.ExitStatus()}
}
