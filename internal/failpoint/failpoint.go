//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// Enabled says that this binary was built with failpoints.
const Enabled = true

// Hit fires the point when ROOST_FAILPOINTS names it.
func Hit(name string) error {
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
