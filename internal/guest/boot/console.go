package boot

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// openConsole gives the process standard files: without a console node in the initramfs the
// kernel starts init with none.
func openConsole() {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer func() { _ = console.Close() }()
	for _, fd := range []int{1, 2} {
		_ = unix.Dup3(int(console.Fd()), fd, 0)
	}
	if null, err := os.OpenFile("/dev/null", os.O_RDONLY, 0); err == nil {
		_ = unix.Dup3(int(null.Fd()), 0, 0)
		_ = null.Close()
	}
}

// Say prints a line on the console.
func Say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "roost-guest: "+format+"\n", args...)
}

// Die reports why the guest cannot go on, and ends the VM.
func Die(err error) {
	line := fmt.Sprintf("roost-guest: cannot run: %v\n", err)
	if kmsg, kerr := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); kerr == nil {
		_, _ = kmsg.WriteString("<2>" + line)
		_ = kmsg.Close()
	}
	fmt.Fprint(os.Stderr, line)
	unix.Sync()
	time.Sleep(50 * time.Millisecond) // the console's buffer empties by interrupts
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}
