package gvisor

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/roosthq/roost/internal/host/runtime"
)

var _ runtime.Holder = (*Runtime)(nil)

// leafPattern is what leafOf makes.
var leafPattern = regexp.MustCompile(`^([a-z0-9]{20}|template)-([1-9][0-9]*)$`)

// Held implements runtime.Holder.
func (r *Runtime) Held(context.Context) ([]runtime.Held, error) {
	dirs, err := r.cgroups.leaves("*")
	seen := map[string]bool{}
	var out []runtime.Held
	for _, dir := range dirs {
		name := filepath.Base(dir)
		parts := leafPattern.FindStringSubmatch(name)
		if parts == nil || seen[name] {
			continue // a file of the parent, or the same leaf in another hierarchy
		}
		uid, err := strconv.Atoi(parts[2])
		if st, gone := os.Stat(dir); err != nil || gone != nil || !st.IsDir() {
			continue
		}
		seen[name] = true
		out = append(out, runtime.Held{Kind: "cgroup", Name: name, ID: parts[1], UID: uid})
	}
	return out, err
}

// GiveBack implements runtime.Holder.
func (r *Runtime) GiveBack(ctx context.Context, h runtime.Held) error {
	return r.cgroups.remove(ctx, h.Name)
}
