package qemu

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	maxVCPUs    = 64
	minMemoryMB = 64
	maxMemoryMB = 512 << 10
	// maxCmdline is x86's COMMAND_LINE_SIZE, the terminating zero included.
	maxCmdline = 2048
	maxNodes   = 64
)

var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// validate refuses a config before anything is made. boot: the kernel is needed.
func (d *Driver) validate(cfg vmm.Config, boot bool) error {
	checks := []func() error{
		func() error { return checkShape(cfg) },
		func() error { return checkDir(cfg.Dir) },
		func() error { return checkMemory(cfg) },
		func() error { return checkDrive(cfg.Drive) },
		func() error { return checkNetwork(cfg) },
	}
	if boot {
		checks = append(checks, func() error { return d.checkKernel(cfg) })
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return fault.Wrap(err, "check", "config of vm "+cfg.ID)
		}
	}
	return nil
}

func invalid(field string, value any, cause string) error {
	return fault.New(fault.Invalid, field, fmt.Sprintf("%v", value), cause)
}

func checkShape(cfg vmm.Config) error {
	switch {
	case !idPattern.MatchString(cfg.ID):
		return invalid("id", cfg.ID, "not a name of letters, digits and _.-")
	case cfg.VCPUs < 1 || cfg.VCPUs > maxVCPUs:
		return invalid("vcpus", cfg.VCPUs, fmt.Sprintf("not within 1 and %d", maxVCPUs))
	case cfg.MemoryMB < minMemoryMB || cfg.MemoryMB > maxMemoryMB:
		return invalid("memory_mb", cfg.MemoryMB, fmt.Sprintf("not within %d and %d", minMemoryMB, maxMemoryMB))
	case cfg.UID <= 0 || cfg.GID <= 0:
		return invalid("uid:gid", fmt.Sprintf("%d:%d", cfg.UID, cfg.GID), "a VM never runs as root")
	}
	return nil
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return invalid("dir", dir, err.Error())
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if !info.IsDir() || owner != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return invalid("dir", dir, fmt.Sprintf("not a private directory of uid %d (mode 0700)", os.Geteuid()))
	}
	return nil
}

const sealed = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// checkMemory demands a memfd of the right size; one that is mapped privately must be sealed,
// or an escaped VM could write to every other one's memory.
func checkMemory(cfg vmm.Config) error {
	if cfg.Memory.File == nil {
		return invalid("memory", "", "no memfd given")
	}
	info, err := cfg.Memory.File.Stat()
	if err != nil {
		return invalid("memory", cfg.Memory.File.Name(), err.Error())
	}
	if want := int64(cfg.MemoryMB) << 20; info.Size() != want {
		return invalid("memory", cfg.Memory.File.Name(), fmt.Sprintf("%d bytes, not %d", info.Size(), want))
	}
	seals, err := sealsOf(cfg.Memory.File)
	if err != nil {
		return invalid("memory", cfg.Memory.File.Name(), "not a memfd: "+err.Error())
	}
	if !cfg.Memory.Shared && seals&sealed != sealed {
		return invalid("memory", cfg.Memory.File.Name(), "not sealed against write, shrink and grow")
	}
	if cfg.Memory.Shared && seals&unix.F_SEAL_WRITE != 0 {
		return invalid("memory", cfg.Memory.File.Name(), "sealed against write, but to be written")
	}
	return nil
}

func sealsOf(f *os.File) (seals int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { seals, err = unix.FcntlInt(fd, unix.F_GET_SEALS, 0) }); cerr != nil {
		return 0, cerr
	}
	return seals, err
}

func checkDrive(drive []vmm.Node) error {
	if len(drive) > maxNodes {
		return invalid("drive", len(drive), fmt.Sprintf("more than %d nodes", maxNodes))
	}
	for i, n := range drive {
		switch top := i == len(drive)-1; {
		case n.Format != "raw" && n.Format != "qcow2":
			return invalid("drive node", n.Path, fmt.Sprintf("format %q is neither raw nor qcow2", n.Format))
		case n.Format == "raw" && i > 0:
			return invalid("drive node", n.Path, "a raw node stands on nothing")
		case n.ReadOnly == top:
			return invalid("drive node", n.Path, "only the last node is written, and it must be")
		}
	}
	return nil
}

func checkNetwork(cfg vmm.Config) error {
	if cfg.Tap == nil {
		return nil
	}
	if mac, err := net.ParseMAC(cfg.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return invalid("mac", cfg.MAC, "not a unicast Ethernet address")
	}
	return nil
}

func (d *Driver) checkKernel(cfg vmm.Config) error {
	if cmdline := d.cmdline(cfg); len(cmdline) >= maxCmdline || strings.ContainsAny(cmdline, "\n\x00") {
		return invalid("cmdline", cmdline, fmt.Sprintf("longer than %d bytes or not one line", maxCmdline-1))
	}
	files := []string{cfg.Kernel}
	if cfg.Initrd != "" {
		files = append(files, cfg.Initrd)
	}
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return invalid("kernel or initrd", path, err.Error())
		}
		if !info.Mode().IsRegular() {
			return invalid("kernel or initrd", path, "not a regular file")
		}
	}
	return nil
}
