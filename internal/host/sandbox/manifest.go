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
