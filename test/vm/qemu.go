package vm

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/vmm/qemu/tsc"
	"github.com/roosthq/roost/test/vm/guest"
)

// hz is the tick rate of Debian's kernel.
const hz = 250

// qemu is the VM's process and our ends of its ports.
type qemu struct {
	cmd                              *exec.Cmd
	console, stdout, stderr, control *os.File
	// complaints is what QEMU itself said.
	complaints *tail
}

// wires are our end and QEMU's of a socket.
func wires(name string) (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket for %s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name), nil
}

// startQEMU must run on a thread that lives as long as the VM shall: QEMU dies with it, even
// when this process is killed.
func startQEMU(m *machine, s Shape) (*qemu, error) {
	khz, err := tsc.KHz()
	if err != nil {
		return nil, err
	}
	q := &qemu{complaints: &tail{}}
	a := &arguments{}
	a.add("-M", "q35,usb=off,smbus=off,hpet=off", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", s.CPU,
		"-smp", strconv.Itoa(s.CPUs), "-m", strconv.Itoa(s.MemoryMB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.kernel, "-initrd", a.file(m.initrd), "-append", cmdline(khz))
	for _, p := range []struct {
		name string
		ours **os.File
	}{{"console", &q.console}, {guest.StdoutPort, &q.stdout}, {guest.StderrPort, &q.stderr}, {guest.ControlPort, &q.control}} {
		ours, theirs, err := wires(p.name)
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		*p.ours = ours
		a.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", p.name, a.fd(theirs)))
	}
	a.add("-serial", "chardev:console", "-device", "virtio-serial-pci,max_ports=4")
	for _, name := range []string{guest.StdoutPort, guest.StderrPort, guest.ControlPort} {
		a.add("-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", name, name))
	}
	a.disk(m.scratch, guest.ScratchSerial, false)
	for _, d := range m.drives {
		a.disk(d.file, d.serial, true)
	}
	q.cmd = exec.Command("qemu-system-x86_64", a.list...)
	q.cmd.ExtraFiles = a.files
	q.cmd.Stdout, q.cmd.Stderr = q.complaints, q.complaints
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := q.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start QEMU: %w (Debian: qemu-system-x86)", err)
	}
	return q, nil
}

// cmdline: a busy host makes a guest that calibrates its clock hang, so it is told the rate; one
// that counts timer interrupts against its clock panics there, so it does not check. A panic or an
// oops ends the VM. Only warnings go to the console: each byte costs.
func cmdline(khz int) string {
	return fmt.Sprintf("console=ttyS0 loglevel=5 reboot=t panic=-1 oops=panic mitigations=off lpj=%d tsc_early_khz=%d tsc=reliable "+
		"no_timer_check random.trust_cpu=on edd=off sysrq_always_enabled", khz*1000/hz, khz)
}

// arguments are QEMU's, with the files that they name by descriptor.
type arguments struct {
	list  []string
	files []*os.File
}

func (a *arguments) add(args ...string) { a.list = append(a.list, args...) }

// fd is the number that a file will have in QEMU.
func (a *arguments) fd(f *os.File) int {
	a.files = append(a.files, f)
	return 2 + len(a.files)
}

func (a *arguments) file(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", a.fd(f)) }

// disk: what is lost in a crash of the host is lost anyway.
func (a *arguments) disk(f *os.File, serial string, readOnly bool) {
	mode := "off"
	if readOnly {
		mode = "on"
	}
	a.add("-drive", fmt.Sprintf("if=none,id=%s,format=raw,cache=unsafe,aio=threads,discard=unmap,read-only=%s,file.locking=off,file=%s", serial, mode, a.file(f)),
		"-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", serial, serial))
}
