package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// templateID is the id of every template's boot.
const templateID = "template"

// bootNote is a template's boot in its directory, written before it starts: what no journal
// names and an agent that dies in the middle leaves running.
type bootNote struct {
	Runtime string `json:"runtime"`
	UID     int    `json:"uid"`
	// DiskDir is where its disk lay: by that its devices are found when its files have gone.
	DiskDir string `json:"disk_dir,omitempty"`
	dir     string
}

func (n bootNote) path() string { return filepath.Join(n.dir, "boot.json") }

func (n bootNote) write() error {
	raw, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(n.path(), raw, 0o600)
	}
	return fault.Wrap(err, "write", "note of a template's boot")
}

// bootNotes are those that a dead agent left. One that cannot be read was not written whole, and
// nothing was started after it.
func (m *Manager) bootNotes() []bootNote {
	dirs, _ := filepath.Glob(filepath.Join(m.cfg.Data.Trash(), "boot-*"))
	var out []bootNote
	for _, dir := range dirs {
		n := bootNote{dir: dir}
		raw, err := os.ReadFile(n.path())
		if err == nil && json.Unmarshal(raw, &n) == nil {
			out = append(out, n)
		}
	}
	return out
}

// reapBoots ends what is left of templates' boots. Their uids alone would not do: a runtime's
// command that runs as root goes on, and starts something under a uid that is a sandbox's by
// then. A uid that a journal names is that sandbox's already, and left alone.
func (m *Manager) reapBoots(ctx context.Context, notes []bootNote) error {
	ctx, cancel := undo.Context(ctx)
	defer cancel()
	m.starting.Lock()
	defer m.starting.Unlock()
	_, busy := m.wanted()
	var errs []error
	for _, n := range notes {
		spec := runtime.Spec{ID: templateID, RunDir: n.dir, DiskDir: n.DiskDir, UID: n.UID}
		if busy[n.UID] || !m.cfg.UIDs.Contains(n.UID) {
			spec.UID = 0
		}
		m.log.Warn("ending a template's boot that an earlier agent was at", "runtime", n.Runtime, "uid", n.UID)
		errs = append(errs, m.runtimeOf(n.Runtime).Reap(ctx, spec), os.RemoveAll(n.dir))
	}
	return fault.Wrap(errors.Join(errs...), "end", "boots of templates")
}
