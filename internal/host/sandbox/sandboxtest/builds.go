package sandboxtest

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"
)

// Upgrade makes a build of that name the runtime's current one.
func (r *Runtime) Upgrade(name string) {
	r.t.Helper()
	require.NoError(r.t, os.MkdirAll(r.builds, 0o700))
	path := filepath.Join(r.builds, name)
	require.NoError(r.t, os.WriteFile(path, nil, 0o600))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.build = path
}

func (r *Runtime) current() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.build
}

// NeededBy implements runtime.Keeper.
func (r *Runtime) NeededBy(raw json.RawMessage) ([]string, error) {
	var h handle
	err := json.Unmarshal(raw, &h)
	if h.Build == "" {
		return nil, err
	}
	return []string{h.Build}, errors.Join(err, r.hit("needed"))
}

// Retire implements runtime.Keeper.
func (r *Runtime) Retire(used map[string]bool) error {
	if err := r.hit("retire"); err != nil {
		return err
	}
	all, err := filepath.Glob(filepath.Join(r.builds, "*"))
	for _, path := range all {
		if !used[path] && path != r.current() {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}
