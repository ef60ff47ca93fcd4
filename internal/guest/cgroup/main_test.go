package cgroup

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// program names what the test binary does instead of testing.
const program = "ROOST_TEST_PROGRAM"

// TestMain lets this binary be the programs that are frozen: the shell has no threads or vfork.
func TestMain(m *testing.M) {
	switch os.Getenv(program) {
	case "threads":
		threads()
	case "vfork":
		vfork()
	case "hop":
		hop()
	case "forkbomb":
		bomb()
	}
	goleak.VerifyTestMain(m)
}

// tick adds a line to the file that the test looks at.
func tick(format string, args ...any) {
	f, err := os.OpenFile(os.Getenv("TICKS"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		os.Exit(1)
	}
	_, _ = fmt.Fprintf(f, format+"\n", args...)
	_ = f.Close()
}

// threads ticks on four threads.
func threads() {
	for range 4 {
		go func() {
			runtime.LockOSThread()
			for {
				tick("t")
			}
		}()
	}
	select {}
}

// vfork starts programs; Go's fork is vfork, and waits until the child has called exec.
func vfork() {
	for i := 0; ; i++ {
		start("/bin/true", nil, true)
		tick("%d", i)
	}
}

// hop is in no process for long: each starts the next and ends.
func hop() {
	tick("h")
	start("/proc/self/exe", os.Environ(), false)
	os.Exit(0)
}

// bomb starts children without waiting for them, and they start more, to a depth of two.
func bomb() {
	depth := os.Getenv("DEPTH") + "x"
	tick("b")
	if len(depth) < 3 {
		_ = os.Setenv("DEPTH", depth)
		for range 3 {
			start("/proc/self/exe", os.Environ(), false)
		}
	}
	for {
		tick("b")
	}
}

func start(path string, env []string, wait bool) {
	pid, err := syscall.ForkExec(path, []string{strings.TrimPrefix(path, "/")}, &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
	if err != nil {
		fmt.Fprintln(os.Stderr, "start", path, err)
		os.Exit(1)
	}
	if wait {
		_, _ = syscall.Wait4(pid, nil, 0, nil)
	}
}
