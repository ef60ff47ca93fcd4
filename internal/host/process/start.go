package process

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Spec is what to start.
type Spec struct {
	Path string
	Args []string
	Env  []string
	// Files become descriptors 0, 1, 2 and so on; nothing else is inherited.
	Files    []*os.File
	UID, GID int
	// Groups are the supplementary groups, normally none.
	Groups []int
	// MaxFiles is the limit of open descriptors.
	MaxFiles uint64
}

// Start runs spec in a session, a network and an IPC namespace of its own, with / as the
// working directory and no core dumps: a core would hold a guest's memory.
func Start(spec Spec) (*Process, error) {
	if err := noCore(); err != nil {
		return nil, err
	}
	pidfd := -1
	p, err := os.StartProcess(spec.Path, append([]string{spec.Path}, spec.Args...), &os.ProcAttr{
		Dir:   "/",
		Env:   spec.Env,
		Files: spec.Files,
		Sys:   spec.attributes(&pidfd),
	})
	if err != nil {
		return nil, fault.Wrap(err, "start", spec.Path)
	}
	pid := p.Pid
	_ = p.Release() // the pidfd is ours; os.Process would keep a second one
	proc, err := take(pid, pidfd)
	if err == nil {
		err = limit(pid, spec.MaxFiles)
	}
	if err != nil {
		discard(pid, pidfd, proc)
		return nil, err
	}
	proc.watch()
	return proc, nil
}

func (s Spec) attributes(pidfd *int) *syscall.SysProcAttr {
	groups := make([]uint32, 0, len(s.Groups))
	for _, g := range s.Groups {
		groups = append(groups, uint32(g))
	}
	return &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID), Groups: groups},
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		PidFD:      pidfd,
	}
}

// limit sets hard limits, which takes CAP_SYS_RESOURCE since the child has another uid. A root
// without it (in a container) leaves the inherited ones, of which noCore made one harmless.
func limit(pid int, files uint64) error {
	limits := map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: files}
	for resource, n := range limits {
		err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil)
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fault.Wrap(err, "limit", "process")
		}
	}
	return nil
}

// noCore takes core dumps from this process, and so from those that it starts: either's would
// hold guests' memory.
var noCore = sync.OnceValue(func() error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &lim); err != nil {
		return fault.Wrap(err, "limit", "core dumps")
	}
	lim.Cur = 0
	return fault.Wrap(unix.Setrlimit(unix.RLIMIT_CORE, &lim), "limit", "core dumps")
})

// discard ends a child that was started and cannot be kept.
func discard(pid, pidfd int, proc *Process) {
	_ = unix.Kill(pid, unix.SIGKILL) // not reaped yet, so the pid is still this child's
	_, _ = unix.Wait4(pid, nil, 0, nil)
	if proc != nil {
		_ = proc.pidfd.Close()
	} else if pidfd >= 0 {
		_ = unix.Close(pidfd)
	}
}
