package firecracker

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

const (
	maxVCPUs    = 32
	minMemoryMB = 64
	maxMemoryMB = 512 << 10
	// maxCmdline is x86's COMMAND_LINE_SIZE, less what Firecracker itself adds: its devices.
	maxCmdline = 2048 - 256
)

// idPattern is what the jailer takes, with room for the uid: see jailID.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,49}$`)

// validate refuses a config before anything is made. boot: the kernel is needed.
func validate(cfg vmm.Config, boot bool) error {
	checks := []func(vmm.Config) error{checkShape, checkDir, checkDrive, checkNetwork, checkMemory}
	if boot {
		checks = []func(vmm.Config) error{checkShape, checkDir, checkDrive, checkNetwork, checkNoMemory, checkKernel}
	}
	for _, check := range checks {
		if err := check(cfg); err != nil {
			return fault.Wrap(err, "check", "config of vm "+cfg.ID)
		}
	}
	return nil
}

func checkShape(cfg vmm.Config) error {
	switch {
	case !idPattern.MatchString(cfg.ID):
		return invalid("id", cfg.ID, "not a name of letters, digits and hyphens")
	case cfg.VCPUs < 1 || cfg.VCPUs > maxVCPUs:
		return invalid("vcpus", cfg.VCPUs, fmt.Sprintf("not within 1 and %d", maxVCPUs))
	case cfg.MemoryMB < minMemoryMB || cfg.MemoryMB > maxMemoryMB:
		return invalid("memory_mb", cfg.MemoryMB, fmt.Sprintf("not within %d and %d", minMemoryMB, maxMemoryMB))
	case cfg.UID <= 0 || cfg.GID <= 0:
		return invalid("uid:gid", fmt.Sprintf("%d:%d", cfg.UID, cfg.GID), "a VM never runs as root")
	}
	return nil
}

func checkDir(cfg vmm.Config) error {
	info, err := os.Stat(cfg.Dir)
	if err != nil {
		return invalid("dir", cfg.Dir, err.Error())
	}
	if !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return invalid("dir", cfg.Dir, fmt.Sprintf("not a private directory of uid %d (mode 0700)", os.Geteuid()))
	}
	return nil
}

func checkDrive(cfg vmm.Config) error {
	if len(cfg.Drive) > 1 {
		return invalid("drive", len(cfg.Drive), "firecracker takes one node, no chain")
	}
	for _, n := range cfg.Drive {
		if err := checkNode(n); err != nil {
			return err
		}
	}
	return nil
}

func checkNode(n vmm.Node) error {
	switch {
	case n.Format != "raw":
		return invalid("drive node", n.Path, fmt.Sprintf("format %q is not raw", n.Format))
	case n.ReadOnly:
		return invalid("drive node", n.Path, "it is written, and must not be read-only")
	}
	info, err := os.Stat(n.Path)
	if err != nil {
		return invalid("drive node", n.Path, err.Error())
	}
	if !info.Mode().IsRegular() && !isBlock(info) {
		return invalid("drive node", n.Path, "neither a block device nor a regular file")
	}
	return nil
}

func isBlock(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

func checkNetwork(cfg vmm.Config) error {
	if cfg.Tap != nil {
		return invalid("tap", cfg.Tap.Name(), "firecracker opens its tap itself")
	}
	if cfg.TapName == "" {
		return nil
	}
	if cfg.NetNS == "" {
		return invalid("network namespace", "", "a tap is named, and no namespace that it is in")
	}
	if _, err := os.Stat(cfg.NetNS); err != nil {
		return invalid("network namespace", cfg.NetNS, err.Error())
	}
	if len(cfg.TapName) > 15 || strings.ContainsAny(cfg.TapName, "/ \n") {
		return invalid("tap", cfg.TapName, "not the name of an interface")
	}
	if mac, err := net.ParseMAC(cfg.MAC); err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return invalid("mac", cfg.MAC, "not a unicast Ethernet address")
	}
	return nil
}

// checkNoMemory is for a boot: Firecracker makes its memory.
func checkNoMemory(cfg vmm.Config) error {
	if m := cfg.Memory; m.File != nil || m.Path != "" || m.Pager != "" {
		return invalid("memory", m.Path+m.Pager, "a boot takes none")
	}
	return nil
}

// checkMemory is for a restore.
func checkMemory(cfg vmm.Config) error {
	m := cfg.Memory
	if m.File != nil {
		return invalid("memory", m.File.Name(), "firecracker takes no memfd")
	}
	if m.Shared {
		return invalid("memory", m.Path+m.Pager, "firecracker's is never shared")
	}
	if (m.Path == "") == (m.Pager == "") {
		return invalid("memory", m.Path+m.Pager, "a restore takes a file or a pager, one of them")
	}
	if m.Pager != "" {
		info, err := os.Lstat(m.Pager)
		if err != nil {
			return invalid("pager", m.Pager, err.Error())
		}
		if info.Mode()&os.ModeSocket == 0 {
			return invalid("pager", m.Pager, "not a socket")
		}
		return nil
	}
	if err := trusted(m.Path); err != nil {
		return err
	}
	info, err := os.Stat(m.Path)
	if err != nil {
		return invalid("memory", m.Path, err.Error())
	}
	if want := int64(cfg.MemoryMB) << 20; info.Size() < want {
		return invalid("memory", m.Path, fmt.Sprintf("%d bytes, less than %d", info.Size(), want))
	}
	return nil
}

var elfMagic = []byte("\x7fELF")

// checkKernel is for a boot.
func checkKernel(cfg vmm.Config) error {
	if args := bootArgs(cfg); len(args) >= maxCmdline || strings.ContainsAny(args, "\n\x00") {
		return invalid("cmdline", args, fmt.Sprintf("longer than %d bytes or not one line", maxCmdline-1))
	}
	if err := trusted(cfg.Kernel); err != nil {
		return err
	}
	if !isELF(cfg.Kernel) {
		return invalid("kernel", cfg.Kernel, "not an ELF vmlinux")
	}
	if cfg.Initrd != "" {
		return trusted(cfg.Initrd)
	}
	return nil
}

func isELF(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(elfMagic))
	_, err = f.Read(head)
	return err == nil && bytes.Equal(head, elfMagic)
}

func bootArgs(cfg vmm.Config) string { return strings.TrimSpace(cfg.Cmdline + " " + cmdline) }
