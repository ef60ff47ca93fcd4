package doctor

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// What a host for many sandboxes should have. 4096 sandboxes is the most that Roost has slots for.
const (
	leastFiles     = 16384 // a dozen descriptors of the agent's for each of a thousand sandboxes
	leastPIDs      = 65536 // a dozen threads of VMM or sentry for each of 4096
	leastConntrack = 65536 // a slot may have 8192 flows
	leastEntropy   = 128   // bits; a kernel whose source is ready says 256
)

// kernel that Firecracker's makers still test hosts with.
func (s System) kernel(context.Context) Finding {
	const name = "kernel"
	release, err := s.read("proc/sys/kernel/osrelease")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return warn(name, "its release is "+release, "use a stock Linux kernel")
	}
	if major < 5 || major == 5 && minor < 10 {
		return warn(name, "Linux "+release+" is older than 5.10", "apt-get dist-upgrade, or install linux-image-amd64 of a newer Debian")
	}
	return ok(name, "Linux "+release)
}

// entropy is what keys and guests' seeds come of.
func (s System) entropy(context.Context) Finding {
	const name, hint = "entropy", "give a VM a virtio-rng device, install rng-tools5 or haveged, or use Linux 5.18 or newer"
	if _, err := unix.Getrandom(make([]byte, 8), unix.GRND_NONBLOCK); err != nil {
		return warn(name, "the kernel's random source is not ready: "+err.Error(), hint)
	}
	bits, err := s.number("proc/sys/kernel/random/entropy_avail")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	if bits < leastEntropy {
		return warn(name, fmt.Sprintf("%d bits: keys would be made of little", bits), hint)
	}
	return ok(name, fmt.Sprintf("%d bits", bits))
}

// Discipline is how the kernel's clock is kept.
type Discipline struct {
	Synchronized bool
	// MaxErrorMS is what the kernel thinks it may be off by.
	MaxErrorMS int64
}

func kernelClock() (Discipline, error) {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return Discipline{}, err
	}
	return Discipline{Synchronized: state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0, MaxErrorMS: tx.Maxerror / 1000}, nil
}

// time of the host is what guests are set to at every start.
func (s System) time(context.Context) Finding {
	const name, hint = "time", "apt-get install chrony (or systemd-timesyncd): guests' clocks are set by this one, and certificates depend on it"
	clock := s.Clock
	if clock == nil {
		clock = kernelClock
	}
	d, err := clock()
	switch {
	case err != nil:
		return warn(name, err.Error(), hint)
	case !d.Synchronized:
		return warn(name, "nothing keeps the clock: the kernel says that it is not synchronized", hint)
	}
	return ok(name, fmt.Sprintf("synchronized, within %d ms", d.MaxErrorMS))
}

// FileLimit is how many descriptors the server may have.
func FileLimit(context.Context) Finding {
	const name = "open files"
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return warn(name, err.Error(), "")
	}
	if l.Max < leastFiles {
		return warn(name, fmt.Sprintf("at most %d: each sandbox takes about a dozen", l.Max),
			"LimitNOFILE=1048576 in roost's unit, or ulimit -Hn 1048576 before it is started")
	}
	return ok(name, fmt.Sprintf("at most %d", l.Max))
}

// pids bounds the threads of the whole host.
func (s System) pids(context.Context) Finding {
	const name = "processes"
	pids, err := s.number("proc/sys/kernel/pid_max")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	threads, err := s.number("proc/sys/kernel/threads-max")
	if err != nil {
		return warn(name, err.Error(), "mount /proc")
	}
	detail := fmt.Sprintf("pid_max %d, threads-max %d", pids, threads)
	if min(pids, threads) < leastPIDs {
		return warn(name, detail+": every sandbox takes about a dozen threads of the host",
			"sysctl -w kernel.pid_max=4194304 kernel.threads-max=4194304, and in /etc/sysctl.d")
	}
	return ok(name, detail)
}

// overcommit: a guest's memory is mapped whole and mostly shared, which strict accounting counts whole.
func (s System) overcommit(context.Context) Finding {
	const name = "overcommit"
	mode, err := s.number("proc/sys/vm/overcommit_memory")
	switch {
	case err != nil:
		return warn(name, err.Error(), "mount /proc")
	case mode == 2:
		return warn(name, "strict: each sandbox is charged for all of its memory, though most is shared, and starts fail early", "sysctl -w vm.overcommit_memory=0, and in /etc/sysctl.d")
	}
	return ok(name, fmt.Sprintf("vm.overcommit_memory is %d", mode))
}

// conntrack holds the connections of all sandboxes, twice.
func (s System) conntrack(context.Context) Finding {
	const name = "conntrack"
	most, err := s.number("proc/sys/net/netfilter/nf_conntrack_max")
	switch {
	case err != nil && !s.Serving:
		return ok(name, "not loaded yet: `roost up` makes the kernel load it")
	case err != nil:
		return warn(name, err.Error(), "modprobe nf_conntrack")
	case most < leastConntrack:
		return warn(name, fmt.Sprintf("room for %d connections; one sandbox may have 8192", most), "sysctl -w net.netfilter.nf_conntrack_max=262144, and in /etc/sysctl.d")
	}
	return ok(name, fmt.Sprintf("room for %d connections", most))
}
