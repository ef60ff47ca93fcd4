package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/roosthq/roost/internal/host/vmm"
)

// machine and the options below must be the same when a state is saved and loaded. Nothing is
// left to QEMU's "auto", which depends on the accelerator.
const machine = "microvm,acpi=on,pic=on,pit=on,rtc=on,isa-serial=on,pcie=off,usb=off,ioapic2=off," +
	"auto-kernel-cmdline=off,dump-guest-core=off,mem-merge=off,suppress-vmdesc=on"

const sandboxOption = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// diskID is the device that the drive's top node belongs to.
const diskID = "disk0"

// inherited are the descriptors that a process starts with. Numbers follow from the order.
type inherited struct{ files []*os.File }

func (in *inherited) add(f *os.File) int {
	in.files = append(in.files, f)
	return len(in.files) - 1
}

// start is everything that one launch of QEMU needs, opened.
type start struct {
	cfg            vmm.Config
	in             inherited
	qmp, console   int
	memory, tap    int
	kernel, initrd int // 0: none
	state          int // 0: boot
	nodes          []openNode
}

func (d *Driver) cmdline(cfg vmm.Config) string {
	return strings.TrimSpace(cfg.Cmdline + " " + d.accel.cmdline)
}

func (d *Driver) args(s *start) []string {
	args := []string{
		"-name", s.cfg.ID,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", sandboxOption,
		"-machine", machine + ",memory-backend=mem",
		"-accel", d.accel.option,
		"-cpu", d.accel.cpu,
		"-smp", fmt.Sprintf("%d,sockets=1,cores=%d,threads=1", s.cfg.VCPUs, s.cfg.VCPUs),
		"-m", fmt.Sprintf("size=%dM", s.cfg.MemoryMB),
		"-object", memoryObject(s),
		"-global", "migration.send-configuration=off",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", s.qmp),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off", s.console),
		"-serial", "chardev:console",
		"-object", "rng-builtin,id=rng0",
		"-device", "virtio-rng-device,rng=rng0",
	}
	args = append(args, driveArgs(s)...)
	args = append(args, networkArgs(s)...)
	return append(args, d.guestArgs(s)...)
}

// guestArgs: a boot has a kernel; a restore waits, stopped, for its state.
func (d *Driver) guestArgs(s *start) []string {
	if s.state != 0 {
		return []string{"-S", "-incoming", "defer"}
	}
	args := []string{"-kernel", selfFD(s.kernel), "-append", d.cmdline(s.cfg)}
	if s.initrd != 0 {
		args = append(args, "-initrd", selfFD(s.initrd))
	}
	return args
}

func selfFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func memoryObject(s *start) string {
	share := "off"
	if s.cfg.Memory.Shared {
		share = "on"
	}
	return fmt.Sprintf("memory-backend-file,id=mem,mem-path=%s,size=%dM,share=%s,merge=off,dump=off",
		selfFD(s.memory), s.cfg.MemoryMB, share)
}

func driveArgs(s *start) []string {
	if len(s.nodes) == 0 {
		return nil
	}
	var args []string
	backing := ""
	for i, n := range s.nodes {
		for _, fd := range n.fds {
			args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d,opaque=%s", s.in.add(fd.file), i+1, fd.label))
		}
		path := fmt.Sprintf("/dev/fdset/%d", i+1)
		args = append(args, "-blockdev", asJSON(n.fileOptions(path)), "-blockdev", asJSON(n.formatOptions(backing)))
		backing = n.formatName()
	}
	return append(args, "-device", fmt.Sprintf("virtio-blk-device,id=%s,drive=%s,serial=root", diskID, backing))
}

func networkArgs(s *start) []string {
	if s.cfg.Tap == nil {
		return nil
	}
	return []string{
		"-netdev", fmt.Sprintf("tap,id=net0,fd=%d,vhost=off", s.tap),
		"-device", "virtio-net-device,id=nic0,netdev=net0,mac=" + s.cfg.MAC,
	}
}

func asJSON(v any) string {
	raw, _ := json.Marshal(v) // maps of strings, numbers and bools do not fail
	return string(raw)
}
