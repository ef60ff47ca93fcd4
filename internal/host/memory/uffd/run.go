package uffd

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/memory"
)

// Options of a page server's process, which Start writes. Its descriptors, in order: the log (1 and
// 2), the state, the listening socket or, to attach, the userfaultfd and a pidfd of the VMM; then
// those that there are of template, map, layers and working set.
type Options struct {
	Bytes      int64         `json:"bytes"`
	Attach     bool          `json:"attach,omitempty"`
	Base       bool          `json:"base,omitempty"`
	Map        bool          `json:"map,omitempty"`
	Layers     int           `json:"layers,omitempty"`
	WorkingSet bool          `json:"working_set,omitempty"`
	Window     uint32        `json:"window"`
	Record     time.Duration `json:"record,omitempty"`
}

// Main is the page server's process: `roost pager OPTIONS`. It returns the exit status: 0 when the
// VM is gone, 1 otherwise; what happened is in the log and the state.
func Main(ctx context.Context, args []string) int {
	var o Options
	err := fault.New(fault.Invalid, "start", "pager", "it is started by the agent, with its options as the one argument")
	if len(args) == 1 && json.Unmarshal([]byte(args[0]), &o) == nil && o.Bytes > 0 {
		if err := Run(ctx, o); err == nil {
			return 0
		}
		return 1
	}
	logger().Error(err.Error())
	return 1
}

func logger() *slog.Logger { return slog.New(slog.NewTextHandler(os.Stderr, nil)) }

// Run serves until the VM is gone. The process must have the descriptors that Options tells of.
func Run(ctx context.Context, o Options) error {
	log := logger()
	err := run1(ctx, o, log)
	if err != nil {
		log.Error("pager ends", "error", err.Error())
	}
	return err
}

func run1(ctx context.Context, o Options, log *slog.Logger) error {
	if err := harden(); err != nil {
		return fault.Wrap(err, "start", "pager")
	}
	in, err := inherit(o)
	if err != nil {
		return err
	}
	st, err := mapState(in.state, pagesOf(o.Bytes))
	if err != nil {
		return err
	}
	stop, err := stopOn(ctx)
	if err != nil {
		return err
	}
	err = in.serve(o, st, stop, log)
	st.finish(endOf(err), reasonOf(err))
	return errors.Join(err, st.close())
}

// harden takes what a page server needs least: new privileges, and being looked into by another
// process of its uid, which is the VM's. In a build with cgo the first is for this thread and those
// that it makes.
func harden() error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
	if errno == unix.ENOTSUP {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
	} else if errno != 0 {
		return errno
	}
	// The agent sets these too, where it may.
	for resource, n := range map[int]uint64{unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_CORE: 0} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// stopOn is a descriptor that is readable once ctx has ended. It lives as long as the process.
func stopOn(ctx context.Context) (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, err
	}
	context.AfterFunc(ctx, func() { _, _ = unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	return fd, nil
}

// inherited are the descriptors that the process was started with.
type inherited struct {
	state, socket, vmm, base, m, set *os.File
	layers                           []*os.File
}

const firstFile = 3

func inherit(o Options) (*inherited, error) {
	fd := uintptr(firstFile)
	next := func(name string, there bool) *os.File {
		if !there {
			return nil
		}
		fd++
		unix.CloseOnExec(int(fd - 1))
		return os.NewFile(fd-1, name)
	}
	in := &inherited{state: next("state", true), socket: next("socket", true), vmm: next("vmm", o.Attach)}
	in.base, in.m = next("template", o.Base), next("map", o.Map)
	for range o.Layers {
		in.layers = append(in.layers, next("layer", true))
	}
	in.set = next("working set", o.WorkingSet)
	if err := closeStrays(); err != nil {
		return nil, fault.Wrap(err, "start", "pager")
	}
	if _, err := in.state.Stat(); err != nil {
		return nil, fault.Wrap(err, "start", "pager")
	}
	return in, nil
}

// closeStrays closes what the agent itself was started with and let through: all descriptors but the
// log that a further exec would keep.
func closeStrays() error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range list {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < firstFile {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

func (in *inherited) source(bytes int64) (*memory.Source, error) {
	if in.m == nil {
		return memory.OpenSource(in.base, bytes, nil, nil)
	}
	m, err := memory.ReadMapFrom(in.m)
	if err != nil {
		return nil, err
	}
	layers, err := memory.LayersOf(m, in.layers)
	if err != nil {
		return nil, err
	}
	return memory.OpenSource(in.base, bytes, m, layers)
}

func (in *inherited) serve(o Options, st *state, stop int, log *slog.Logger) error {
	source, err := in.source(o.Bytes)
	if err != nil {
		return err
	}
	if o.Attach {
		return in.again(o, st, source, stop, log)
	}
	p, err := accept(in.socket, stop)
	if err != nil {
		return err
	}
	// Its numbers are used to the end: it must not be collected, and closed, before.
	defer p.close()
	_ = in.socket.Close() // there is one VM
	u, err := takeUserfault(p.uffd)
	if err != nil {
		return refused("%v", err)
	}
	list, err := parseRegions(p.regions, o.Bytes)
	if err != nil {
		return err
	}
	st.commit(list)
	if o.Record > 0 {
		st.head.recordUntil = time.Now().Add(o.Record).UnixNano()
	}
	s := newServer(u, list, source, st, o.Window, log)
	return s.both(int(p.pidfd.Fd()), stop, in.workingSet(source.Pages(), log))
}

// again goes on where the life before this one ended.
func (in *inherited) again(o Options, st *state, source *memory.Source, stop int, log *slog.Logger) error {
	// As in serve: kept to the end.
	defer func() { _ = errors.Join(in.socket.Close(), in.vmm.Close()) }()
	u, err := takeUserfault(in.socket)
	if err != nil {
		return refused("%v", err)
	}
	list, err := st.head.handshake(o.Bytes)
	if err != nil {
		return err
	}
	st.begin()
	s := newServer(u, list, source, st, o.Window, log)
	s.replay()
	if err := s.wakeAll(); errors.Is(err, errGone) {
		return nil
	} else if err != nil {
		return err
	}
	return s.both(int(in.vmm.Fd()), stop, nil)
}

func (in *inherited) workingSet(pages uint32, log *slog.Logger) []run {
	if in.set == nil {
		return nil
	}
	set, err := readSet(in.set, pages)
	if err != nil {
		log.Warn("no prefetch", "error", err.Error())
		return nil
	}
	return set
}

// both serves and prefetches. Whichever fails ends the other.
func (s *server) both(vmm, stop int, set []run) error {
	s.state.served()
	if len(set) == 0 {
		return s.serve(vmm, stop, -1)
	}
	halt, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(halt) }()
	failed, stopped := make(chan error, 1), make(chan struct{})
	go func() {
		err := s.prefetch(set, stopped)
		if err != nil {
			_, _ = unix.Write(halt, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
		failed <- err
	}()
	err = s.serve(vmm, stop, halt)
	close(stopped)
	if first := <-failed; first != nil {
		return first
	}
	return err
}

func endOf(err error) uint64 {
	switch {
	case err == nil:
		return endGone
	case fault.Is(err, fault.DataLoss):
		return endDataLoss
	case fault.Is(err, fault.Invalid):
		return endRefused
	default:
		return endFailed
	}
}

func reasonOf(err error) string {
	if err == nil {
		return "the VM is gone"
	}
	return err.Error()
}
