package sandbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

// operationsKept is how many operation ids a journal remembers.
const operationsKept = 32

// noSlot is the slot of a sandbox that has none.
const noSlot = -1

// journal is what a sandbox's directory says about it: intent first, then what came of it.
type journal struct {
	Version    int    `json:"version"`
	ID         string `json:"id"`
	State      State  `json:"state"`
	Reason     string `json:"reason,omitempty"`
	Generation uint64 `json:"generation"`
	// Operations that were carried out, newest last.
	Operations []string `json:"operations,omitempty"`

	TemplateName string            `json:"template_name"`
	Template     runtime.Template  `json:"template"`
	Resources    runtime.Resources `json:"resources"`
	DefaultUser  string            `json:"default_user,omitempty"`
	Envs         map[string]string `json:"envs,omitempty"`
	IdleTimeout  time.Duration     `json:"idle_timeout_ns"`
	Runtime      string            `json:"runtime"`
	Isolation    runtime.Isolation `json:"isolation"`

	MachineID    string `json:"machine_id"`
	AccessToken  string `json:"access_token"`
	ControlToken string `json:"control_token"`

	// Slot and UID are held from before the start that uses them until after its end.
	Slot int `json:"slot"`
	UID  int `json:"uid"`
	// DiskIndex names the live disk; the next start uses the next number.
	DiskIndex int             `json:"disk_index"`
	Instance  json.RawMessage `json:"instance,omitempty"`
	// Booted: the instance was booted, so that no capture's memory is a part of its own.
	Booted bool `json:"booted,omitempty"`
	// Last is the record of the instance that a failed or lost sandbox had.
	Last json.RawMessage `json:"last,omitempty"`
	// Was is the state that a resume which fails goes back to; empty is paused.
	Was State `json:"was,omitempty"`
	// Capture is the published capture that a resume starts from; 0 for none. Pending is the
	// one being made by a pause.
	Capture int `json:"capture,omitempty"`
	Pending int `json:"pending,omitempty"`

	// BootID is the host's boot in which this was written: after another one nothing runs.
	BootID string `json:"boot_id,omitempty"`

	CreatedAt time.Time       `json:"created_at"`
	ActiveAt  time.Time       `json:"active_at"`
	Phases    []runtime.Phase `json:"phases,omitempty"`
	Usage     runtime.Usage   `json:"usage"`
}

// did says whether an operation was carried out already.
func (j *journal) did(op string) bool { return op != "" && slices.Contains(j.Operations, op) }

// note remembers an operation.
func (j *journal) note(op string) {
	if op == "" || j.did(op) {
		return
	}
	j.Operations = append(j.Operations, op)
	if extra := len(j.Operations) - operationsKept; extra > 0 {
		j.Operations = slices.Clone(j.Operations[extra:])
	}
}

// save replaces the journal file. A crash of the agent alone loses nothing that was renamed;
// durable also survives a crash of the host, which only a paused sandbox needs: whatever ran
// is lost with the host anyway.
func (j *journal) save(dir paths.Sandbox, durable bool) error {
	raw, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return fault.Wrap(err, "encode journal of", j.ID)
	}
	return fault.Wrap(replaceFile(dir.Journal(), raw, durable), "write journal of", j.ID)
}

func readJournal(dir paths.Sandbox) (*journal, error) {
	raw, err := os.ReadFile(dir.Journal())
	if err != nil {
		return nil, err
	}
	j := &journal{Slot: noSlot}
	if err := json.Unmarshal(raw, j); err != nil {
		return nil, fault.Wrap(err, "parse journal", dir.Journal())
	}
	return j, nil
}

// replaceFile writes a file by rename, so that a reader sees the old or the new one whole.
func replaceFile(path string, data []byte, durable bool) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil && durable {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
