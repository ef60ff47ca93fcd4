// Package doctor says what a host can do for Roost: each check does the thing, or looks at
// the thing itself, and a finding that is not ok says how to mend it.
package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Status of a finding.
type Status string

const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Finding is one line of `roost doctor`.
type Finding struct {
	Name   string
	Status Status
	Detail string
	Hint   string
}

// Check looks at one thing.
type Check func(ctx context.Context) Finding

// Run makes all checks, in order.
func Run(ctx context.Context, checks []Check) []Finding {
	out := make([]Finding, len(checks))
	for i, check := range checks {
		out[i] = check(ctx)
	}
	return out
}

// System is where checks look. The zero value is this machine with nothing installed.
type System struct {
	// Root is the directory whose proc and sys are read; "" is /. What needs a system call is asked
	// of the kernel that runs this, whatever Root is.
	Root string
	// Data is the installation's directory, which need not be there yet.
	Data string
	// Serving: the server itself asks, so what it sets up at its start is there.
	Serving bool
	// Clock says how the kernel's clock is kept; nil asks the kernel.
	Clock func() (Discipline, error)
}

// Host is the checks that need nothing of a running Roost.
func Host(s System) []Check {
	return []Check{
		Root, Machine,
		Tool("mmdebstrap", "mmdebstrap"),
		Tool("mke2fs", "e2fsprogs"),
		Tool("mkfs.erofs", "erofs-utils"),
		s.kvm, Tun, Namespaces, Memfd, s.userfaultfd, Loop, NFTables, Firewall, s.forwarding, s.cgroups, Memory,
		func(context.Context) Finding { return Space(s.Data) },
		s.dataMount,
	}
}

// ProductionGroup begins the names of Production's findings.
const ProductionGroup = "production: "

// Production is what a host for other people's code should have, and a machine to develop on can do
// without: nothing here fails.
func Production(s System) []Check {
	list := []Check{
		s.kernel, s.swap, s.smt, s.ksm, s.vulnerabilities, s.entropy, s.time, FileLimit, s.pids, s.overcommit, s.conntrack,
	}
	out := make([]Check, len(list))
	for i, check := range list {
		out[i] = func(ctx context.Context) Finding {
			f := check(ctx)
			f.Name = ProductionGroup + f.Name
			return f
		}
	}
	return out
}

// read is a file below Root, without the white space at its end.
func (s System) read(path string) (string, error) {
	data, err := os.ReadFile(filepath.Join("/", s.Root, path))
	return strings.TrimRight(string(data), " \n"), err
}

// number is a file that holds one.
func (s System) number(path string) (int64, error) {
	text, err := s.read(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

func (s System) exists(path string) bool {
	_, err := os.Stat(filepath.Join("/", s.Root, path))
	return err == nil
}

func ok(name, detail string) Finding { return Finding{Name: name, Status: OK, Detail: detail} }

func fail(name, detail, hint string) Finding {
	return Finding{Name: name, Status: Fail, Detail: detail, Hint: hint}
}

func warn(name, detail, hint string) Finding {
	return Finding{Name: name, Status: Warn, Detail: detail, Hint: hint}
}

// Root is needed for namespaces, taps and uids.
func Root(context.Context) Finding {
	if os.Geteuid() != 0 {
		return fail("root", fmt.Sprintf("running as uid %d", os.Geteuid()), "run roost as root: it makes namespaces, taps and uids")
	}
	return ok("root", "running as root")
}

// Machine must be one that the guest kernel runs on.
func Machine(context.Context) Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fail("machine", err.Error(), "")
	}
	machine, release := text(u.Machine[:]), text(u.Release[:])
	if machine != "x86_64" {
		return fail("machine", machine, "Roost runs on x86_64")
	}
	return ok("machine", machine+", Linux "+release)
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// Tool checks that a program is there, and names the Debian package that brings it.
func Tool(program, pkg string) Check {
	return func(context.Context) Finding {
		path, err := exec.LookPath(program)
		if err != nil {
			return fail(program, "not found in PATH", "apt-get install "+pkg)
		}
		return ok(program, path)
	}
}

// QEMU looks for the program that runs VMs. A host can do without: it then needs gVisor.
func QEMU(ctx context.Context) Finding {
	const program = "qemu-system-x86_64"
	f := Tool(program, "qemu-system-x86")(ctx)
	f.Name = "qemu"
	if f.Status == Fail {
		f.Status, f.Detail = Warn, program+" "+f.Detail+": no VMs"
	}
	return f
}

// Namespaces must exist in this kernel.
func Namespaces(context.Context) Finding {
	if _, err := os.Stat("/proc/self/ns/net"); err != nil {
		return fail("namespaces", err.Error(), "use a kernel with CONFIG_NET_NS")
	}
	return ok("namespaces", "network namespaces are there")
}

// Memfd seals protect a template's memory.
func Memfd(context.Context) Finding {
	fd, err := unix.MemfdCreate("roost-doctor", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return fail("memfd", err.Error(), "use Linux 3.17 or newer")
	}
	defer unix.Close(fd)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); err != nil {
		return fail("memfd", "cannot be sealed: "+err.Error(), "use Linux 3.17 or newer")
	}
	return ok("memfd", "can be sealed against writing")
}

// Limit of a runtime's sandboxes.
type Limit struct {
	Name    string
	InForce bool
	// Why not, or by what.
	Why string
}

// Limits says which limits hold for the sandboxes of a runtime.
func Limits(runtime string, limits []Limit) Finding {
	f := Finding{Name: runtime + " limits", Status: OK}
	parts := make([]string, len(limits))
	for i, l := range limits {
		state := "in force"
		if !l.InForce {
			state = "not in force"
			f.Status, f.Hint = Warn, "mount cgroup controllers for cpu, memory and pids at /sys/fs/cgroup and let roost make groups there: one sandbox can take the host's share of the others"
		}
		parts[i] = fmt.Sprintf("%s %s (%s)", l.Name, state, l.Why)
	}
	f.Detail = strings.Join(parts, ", ")
	return f
}

// leastMemory is what a few sandboxes of the default size need.
const leastMemory = 2 << 30

// Memory of the host.
func Memory(context.Context) Finding {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fail("memory", err.Error(), "")
	}
	total := info.Totalram * uint64(info.Unit)
	detail := fmt.Sprintf("%.1f GiB", float64(total)/(1<<30))
	if total < leastMemory {
		return warn("memory", detail, "2 GiB or more leave room for sandboxes")
	}
	return ok("memory", detail)
}

// leastSpace is what the base template and a few sandboxes need.
const leastSpace = 5 << 30

// Space where the data lies.
func Space(data string) Finding {
	free, total, err := DiskSpace(data)
	if err != nil {
		return fail("disk", err.Error(), "make the data directory: "+data)
	}
	detail := fmt.Sprintf("%.1f of %.1f GiB free under %s", float64(free)/(1<<30), float64(total)/(1<<30), data)
	if free < leastSpace {
		return warn("disk", detail, "free space, or put the data elsewhere with --data")
	}
	return ok("disk", detail)
}

// DiskSpace is free and total bytes of the file system that holds path or its nearest
// existing parent.
func DiskSpace(path string) (free, total uint64, err error) {
	var fs unix.Statfs_t
	for {
		err = unix.Statfs(path, &fs)
		if err == nil || path == "/" || path == "." {
			break
		}
		path = filepath.Dir(path)
	}
	size := uint64(fs.Bsize) //nolint:gosec // a block size is positive
	return fs.Bavail * size, fs.Blocks * size, err
}
