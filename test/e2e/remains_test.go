package e2e

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/roosthq/roost/test/trials"
)

// keepRemains saves what a failed installation wrote, by hard links, before it is uninstalled.
func (r *roost) keepRemains() {
	if !trials.Soaking() {
		return
	}
	to := filepath.Join(os.Getenv(trials.FolderVariable), filepath.Base(r.data))
	out, err := exec.Command("cp", "-al", r.data, to).CombinedOutput()
	if err != nil {
		r.t.Logf("keep what is left of %s: %v: %s", r.data, err, out)
	}
	r.t.Logf("what is left of %s is in %s", r.data, to)
}
