package census

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// addDescriptors counts this process's. The Go runtime makes one epoll and one eventfd for itself
// when it first needs them; those are not counted, any more of them are.
func (c Census) addDescriptors() error {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	free := map[string]bool{"anon_inode:[eventpoll]": true, "anon_inode:[eventfd]": true}
	for _, e := range list {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the descriptor that listed them
		}
		if free[target] {
			free[target] = false
			continue
		}
		c.addNamed(FD, e.Name()+" → "+target)
		if strings.HasPrefix(target, "net:[") {
			c.addNamed(Namespace, target+", held by descriptor "+e.Name())
		}
	}
	return nil
}

// harmless are goroutines of the testing package and the runtime, by a function on their stack.
var harmless = []string{"testing.(*T).Run", "testing.(*M).", "testing.tRunner.func", "testing.runTests", "os/signal.loop", "runtime.ensureSigM", "testing.runFuzz", "runtime.MHeap_Scavenger"}

func (c Census) addGoroutines() {
	for i, stack := range strings.Split(stacks(), "\n\n") {
		// The first one is the caller.
		head, rest, ok := strings.Cut(stack, ":\n")
		if i == 0 || !ok || containsAny(rest, harmless) {
			continue
		}
		id := strings.Fields(head)[1]
		top, _, _ := strings.Cut(rest, "\n")
		creator := "the runtime"
		if _, by, ok := strings.Cut(rest, "created by "); ok {
			creator, _, _ = strings.Cut(strings.TrimSpace(by), "\n")
		}
		c.add(Goroutine, id, fmt.Sprintf("%s in %s, created by %s", id, top, creator))
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			return string(buf[:n])
		}
		buf = make([]byte, 2*len(buf))
	}
}

func containsAny(text string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}
