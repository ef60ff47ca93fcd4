package devicemapper_test

import (
	"fmt"
	"os"
	"runtime/debug"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails on a goroutine or a descriptor that the tests left behind.
func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	debug.SetMemoryLimit(memoryLimit)
	before := openFiles()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		for fd, name := range openFiles() {
			if code == 0 && before[fd] == "" {
				fmt.Fprintf(os.Stderr, "descriptor %s is left open: %s\n", fd, name)
				code = 1
			}
		}
		os.Exit(code)
	}))
}

// memoryLimit has garbage collected in time: the suite's models take much of the lane's 1 GB.
const memoryLimit = 384 << 20

// openFiles maps the process's descriptors to what they are. The runtime's own poller and
// whatever watches a child process (pidfd) come and go at its pleasure.
func openFiles() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && name != "anon_inode:[eventpoll]" && name != "anon_inode:[eventfd]" && name != "anon_inode:[pidfd]" {
			files[e.Name()] = name
		}
	}
	return files
}
