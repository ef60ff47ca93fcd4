package qcow2_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain fails on a goroutine or a descriptor that the tests left behind.
func TestMain(m *testing.M) {
	before := openFiles()
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/roosthq/roost/internal/host/disk/disktest.holdThread"),
		goleak.Cleanup(func(code int) {
			for fd, name := range openFiles() {
				if code == 0 && before[fd] == "" {
					fmt.Fprintf(os.Stderr, "descriptor %s is left open: %s\n", fd, name)
					code = 1
				}
			}
			os.Exit(code)
		}))
}

// openFiles maps the process's descriptors to what they are. The runtime's own poller and
// whatever watches a child process (pidfd) come and go at its pleasure.
func openFiles() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !ofRuntime(name) {
			files[e.Name()] = name
		}
	}
	return files
}

func ofRuntime(name string) bool {
	return name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]" || name == "anon_inode:[pidfd]"
}
