package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

// manifest is what publishes a capture: when it is there, the capture is whole.
type manifest struct {
	Version    int             `json:"version"`
	SandboxID  string          `json:"sandbox_id"`
	Generation uint64          `json:"generation"`
	CreatedAt  time.Time       `json:"created_at"`
	Runtime    string          `json:"runtime"`
	Record     json.RawMessage `json:"record"`
	// ControlToken is what the guest in the capture accepts.
	ControlToken string `json:"control_token"`
	// DiskOnly: there is no memory; it is booted from.
	DiskOnly bool `json:"disk_only,omitempty"`

	// What a sandbox that is made of the capture has of the one that it was taken of.
	TemplateName string            `json:"template_name"`
	Template     runtime.Template  `json:"template"`
	Resources    runtime.Resources `json:"resources"`
	DefaultUser  string            `json:"default_user,omitempty"`
	Envs         map[string]string `json:"envs,omitempty"`
	IdleTimeout  time.Duration     `json:"idle_timeout_ns"`
	Isolation    runtime.Isolation `json:"isolation"`

	// Frozen is how long the source of a snapshot stood still, Phases what taking it cost.
	Frozen time.Duration   `json:"frozen_ns,omitempty"`
	Phases []runtime.Phase `json:"phases,omitempty"`
}

// manifestOf is the manifest of a capture of a sandbox as it is now.
func manifestOf(j journal, record json.RawMessage) manifest {
	return manifest{
		Version: manifestVersion, SandboxID: j.ID, Generation: j.Generation, CreatedAt: time.Now(),
		Runtime: j.Runtime, Record: record, ControlToken: j.ControlToken,
		TemplateName: j.TemplateName, Template: j.Template, Resources: j.Resources, DefaultUser: j.DefaultUser,
		Envs: j.Envs, IdleTimeout: j.IdleTimeout, Isolation: j.Isolation,
	}
}

const manifestVersion = 1

// readCapture reads a published capture.
func readCapture(dir string) (runtime.Capture, manifest, error) {
	var man manifest
	raw, err := os.ReadFile(filepath.Join(dir, paths.Manifest))
	if err != nil {
		return runtime.Capture{}, man, fault.Wrap(err, "read", "capture manifest")
	}
	if err := json.Unmarshal(raw, &man); err != nil {
		return runtime.Capture{}, man, fault.Wrap(err, "parse", "capture manifest "+dir)
	}
	if man.Version != manifestVersion {
		return runtime.Capture{}, man, fault.New(fault.FailedPrecondition, "read", "capture "+dir,
			fmt.Sprintf("its format is version %d, this roost reads %d", man.Version, manifestVersion))
	}
	return runtime.Capture{Dir: dir, Record: man.Record}, man, nil
}

// writeManifest replaces a published capture's manifest as a whole.
func writeManifest(dir string, man manifest) error {
	raw, err := json.Marshal(man)
	if err != nil {
		return err
	}
	return fault.Wrap(replaceFile(filepath.Join(dir, paths.Manifest), raw, true), "write", "capture manifest")
}
