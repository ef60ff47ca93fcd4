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
	// Fallback is a capture that is kept beside the current one, until a pause has made another.
	// Before it in number: the last save, while the current capture is the disk of a dead instance
	// that nothing has started from yet. After it: such a disk that did not start, whose number
	// must not be taken again.
	Fallback int `json:"fallback,omitempty"`
	// Mended: the journal was made anew out of the last capture. Files that it does not name may
	// be newer, so none is removed before there is another.
	Mended bool `json:"mended,omitempty"`

	// Held: it stands still, since it wrote while the host's disk was full.
	Held *held `json:"held,omitempty"`

	// Unthawed is when it was first tried to thaw a sandbox whose guest does not answer. It is not
	// written down: an agent's own tries count.
	Unthawed time.Time `json:"-"`

	// Fork is the fork that made this sandbox, until all of its sandboxes are there: after a crash
	// the source's journal tells whether they were.
	Fork *forkNote `json:"fork,omitempty"`

	// BootID is the host's boot in which this was written: after another one nothing runs.
	BootID string `json:"boot_id,omitempty"`

	CreatedAt time.Time       `json:"created_at"`
	ActiveAt  time.Time       `json:"active_at"`
	Phases    []runtime.Phase `json:"phases,omitempty"`
	Usage     runtime.Usage   `json:"usage"`
}

// did says whether an operation was carried out already.
func (j *journal) did(op string) bool { return op != "" && slices.Contains(j.Operations, op) }

// next is the number of a capture that is about to be made: no other has it, or had.
func (j *journal) next() int { return max(j.Capture, j.Fallback) + 1 }

// saved makes the pending capture, of all that there is of the sandbox, the current one.
func (j *journal) saved() {
	j.Capture, j.Pending, j.Fallback, j.Mended = j.Pending, 0, 0, false
}

// salvaged makes the pending capture, of the disk of a dead instance, the current one. Whether
// anything starts from that is not known: the last save stays.
func (j *journal) salvaged() {
	if j.Fallback == 0 || j.Fallback > j.Capture {
		j.Fallback = j.Capture
	}
	j.Capture, j.Pending = j.Pending, 0
}

// unproven says that the current capture is a salvaged disk which nothing has started from yet,
// with a save to go back to.
func (j *journal) unproven() bool { return j.Fallback != 0 && j.Fallback < j.Capture }

// exchange makes the fallback the current capture, and the other way round.
func (j *journal) exchange() { j.Capture, j.Fallback = j.Fallback, j.Capture }

// settle takes away what the state leaves no sense to: of one that does not run nothing could write.
func (j *journal) settle() {
	if j.State != Running && j.State != Pausing {
		j.Held = nil
	}
}

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
