// Command prepare makes what the suites of vmmtest and runtimetest need where there is no Go, in the
// in-VM lane say, and prints the folders that must be there at the same path, a line each.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/host/runtime/runtimetest"
	"github.com/roosthq/roost/internal/host/vmm/vmmtest"
)

func main() {
	fixtures, err := vmmtest.Prepare()
	if err == nil {
		var images string
		images, err = runtimetest.Prepare()
		fmt.Printf("%s\n%s\n", filepath.Dir(fixtures.Initrd), images)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}
