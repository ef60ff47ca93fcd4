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
		Tool("qemu-system-x86_64", "qemu-system-x86"),
		Tool("mmdebstrap", "mmdebstrap"),
		Tool("mke2fs", "e2fsprogs"),
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

// Tun is what taps are made of.
func Tun(context.Context) Finding {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fail("tun", err.Error(), "modprobe tun")
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

// Cgroups says which limits could be in force.
func Cgroups(context.Context) Finding {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil {
		return warn("cgroups", err.Error(), "mount cgroup v2 at /sys/fs/cgroup")
	}
	if fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return ok("cgroups", "version 2; a VM is bounded by its vCPUs and memory, no further limit is set yet")
	}
	return warn("cgroups", "version 1 or mixed; a VM is bounded by its vCPUs and memory, no further limit is set",
		"boot with systemd.unified_cgroup_hierarchy=1")
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
