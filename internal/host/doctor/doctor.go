// Package doctor says what a host can do for Roost: each check does the thing, or looks at
// the thing itself, and a finding that is not ok says how to mend it.
package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// Host is the checks that need nothing of a running Roost.
func Host(data string) []Check {
	return []Check{
		Root, Machine,
		Tool("mmdebstrap", "mmdebstrap"),
		Tool("mke2fs", "e2fsprogs"),
		Tool("mkfs.erofs", "erofs-utils"),
		Tun, Namespaces, Memfd, Cgroups, Memory,
		func(context.Context) Finding { return Space(data) },
	}
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

// Firecracker is what people ask for first.
func Firecracker(context.Context) Finding {
	return ok("firecracker", "Firecracker: not supported by this version")
}

// Tun is what taps are made of, which VMs need.
func Tun(context.Context) Finding {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return warn("tun", err.Error()+": no VMs", "modprobe tun")
	}
	defer f.Close()
	return ok("tun", "/dev/net/tun opens")
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

// Cgroups says which version there is; what each runtime makes of it is the runtime's line.
func Cgroups(context.Context) Finding {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return warn("cgroups", err.Error(), "mount cgroup v2 at /sys/fs/cgroup")
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return ok("cgroups", "version 2")
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory/cgroup.procs"); err == nil {
		return ok("cgroups", "version 1")
	}
	return warn("cgroups", "none that can limit anything is mounted at /sys/fs/cgroup",
		"mount cgroup v2 there, or boot with systemd.unified_cgroup_hierarchy=1")
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
