package gvisor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// sentry is the process that a sandbox is. It is never this agent's child: the runsc command
// that started it has ended, and init reaps it, on some hosts only after seconds. So its exit
// status is read from the zombie, which there is from the moment when the pidfd says so.
type sentry struct {
	pid       int
	startTime uint64

	pidfd *os.File
	once  sync.Once
	// done is closed at its end, never after release.
	done   chan struct{}
	status status
}

// status is how a sentry ended.
type status struct {
	known  bool
	code   int
	signal unix.Signal
	at     time.Time
}

// openSentry holds a process by pid. startTime 0 takes the process as it is; with another it is
// fault.NotFound unless it is the one that started then.
func openSentry(pid int, startTime uint64) (*sentry, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, gone(pid)
	}
	if err != nil {
		return nil, fault.Wrap(err, "open", fmt.Sprintf("process %d", pid))
	}
	s := &sentry{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	// Read after the pidfd was opened: a matching time proves that both mean the same process.
	fields, err := statFields(pid)
	if err == nil {
		s.startTime, err = strconv.ParseUint(fields[startTimeField], 10, 64)
	}
	if err != nil || startTime != 0 && (s.startTime != startTime || readable(fd)) {
		s.release()
		return nil, gone(pid)
	}
	go s.watch()
	return s, nil
}

func gone(pid int) error {
	return fault.New(fault.NotFound, "open", fmt.Sprintf("process %d", pid), "it is gone")
}

// watch waits on the poller, which costs no thread.
func (s *sentry) watch() {
	raw, err := s.pidfd.SyscallConn()
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
	if raw.Control(func(fd uintptr) { s.status = s.ending(int(fd)) }) != nil {
		return
	}
	close(s.done)
	s.release()
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// ending reads how it ended: from the zombie, or, where init was faster, from the pidfd, which
// tells it from Linux 6.15 on.
func (s *sentry) ending(pidfd int) status {
	st := status{at: time.Now()}
	fields, err := statFields(s.pid)
	if err == nil && fields[stateField] == "Z" && fields[startTimeField] == strconv.FormatUint(s.startTime, 10) {
		if code, err := strconv.ParseUint(fields[exitCodeField], 10, 32); err == nil {
			return st.of(unix.WaitStatus(code))
		}
	}
	exit := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if unix.IoctlPidfdInfo(pidfd, &exit) == nil && exit.Mask&unix.PIDFD_INFO_EXIT != 0 {
		return st.of(unix.WaitStatus(exit.Exit_code))
	}
	return st
}

func (st status) of(w unix.WaitStatus) status {
	st.known = true
	if w.Signaled() {
		st.code, st.signal = -1, w.Signal()
	} else {
		st.code = w.ExitStatus()
	}
	return st
}

// release lets go of it; it lives on.
func (s *sentry) release() { s.once.Do(func() { _ = s.pidfd.Close() }) }

// Fields of /proc/PID/stat, counted from the state, which follows the command's last bracket.
const (
	stateField     = 0
	startTimeField = 22 - 3
	exitCodeField  = 52 - 3
)

func statFields(pid int) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) <= exitCodeField {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields, nil
}

// bootID of the running kernel.
var bootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})
