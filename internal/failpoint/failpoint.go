//go:build failpoints

package failpoint

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
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
	switch armed(name) {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "error":
		return fmt.Errorf("failpoint %s", name)
	}
	return nil
}

// armed says what ROOST_FAILPOINTS wants of a point now; "" is nothing.
func armed(name string) string {
	for _, spec := range strings.Split(os.Getenv("ROOST_FAILPOINTS"), ",") {
		if dir, found := strings.CutPrefix(spec, "@"); found {
			if action := inDir(dir, name); action != "" {
				return action
			}
			continue
		}
		point, action, _ := strings.Cut(spec, "=")
		if point != name {
			continue
		}
		action, file, conditional := strings.Cut(action, "@")
		if !conditional || exists(file) {
			return action
		}
	}
	return ""
}

// inDir reads what a file of the point's name says. Of several that meet one "once", a single
// one fails.
func inDir(dir, name string) string {
	file := filepath.Join(dir, name)
	for {
		raw, _ := os.ReadFile(file) // "" when it is not there
		switch action := string(raw); action {
		case "hold":
			_ = os.WriteFile(file+".held", nil, 0o600)
			time.Sleep(holdPoll)
		case "once":
			if os.Remove(file) != nil {
				return ""
			}
			return "error"
		default:
			return action
		}
	}
}

// holdPoll is how soon a held step sees that it may go on.
const holdPoll = 10 * time.Millisecond

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
