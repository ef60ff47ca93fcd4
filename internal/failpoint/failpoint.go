//go:build failpoints

package failpoint

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Enabled says that this binary was built with failpoints.
const Enabled = true

// declared are the points of this program; packages fill it before main begins.
var declared = map[string]bool{}

// Declare names points, once each, from a package's variable.
func Declare(names ...string) struct{} {
	for _, name := range names {
		if declared[name] {
			panic("failpoint " + name + " is declared twice")
		}
		declared[name] = true
	}
	return struct{}{}
}

// Names are the points of this program, sorted.
func Names() []string { return slices.Sorted(maps.Keys(declared)) }

// Hit fires the point when ROOST_FAILPOINTS names it.
func Hit(name string) error {
	if !declared[name] {
		panic("failpoint " + name + " is not declared")
	}
	for _, spec := range strings.Split(os.Getenv("ROOST_FAILPOINTS"), ",") {
		point, action, _ := strings.Cut(spec, "=")
		if point != name {
			continue
		}
		if action == "kill" {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		if file, found := strings.CutPrefix(action, "error@"); found {
			// Armed only while the file exists, so that a test can let a retry succeed.
			if !exists(file) {
				return nil
			}
		}
		return fmt.Errorf("failpoint %s", name)
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
