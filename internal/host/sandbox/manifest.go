package sandbox

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

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

// A manifest file is a line "roost-capture VERSION SUM" and a body in JSON. SUM is the xxh3-128, in
// hex, of the line up to it and the body: whatever bit of the file differs, it is refused. Version 1
// was the body alone.
const (
	manifestMagic   = "roost-capture"
	manifestVersion = 2
	bareVersion     = 1
)

// encode is the manifest as a file.
func (man manifest) encode() ([]byte, error) {
	man.Version = manifestVersion
	body, err := json.Marshal(man)
	if err != nil {
		return nil, err
	}
	head := fmt.Sprintf("%s %d ", manifestMagic, manifestVersion)
	return fmt.Appendf(nil, "%s%s\n%s", head, manifestSum(head, body), body), nil
}

func manifestSum(head string, body []byte) string {
	sum := xxh3.Hash128(append([]byte(head), body...)).Bytes()
	return hex.EncodeToString(sum[:])
}

// parseManifest is the reverse of encode.
func parseManifest(raw []byte) (manifest, error) {
	version, body := bareVersion, raw
	if !bytes.HasPrefix(raw, []byte("{")) {
		var err error
		if version, body, err = openManifest(raw); err != nil {
			return manifest{}, err
		}
	}
	if version > manifestVersion {
		return manifest{}, fault.New(fault.FailedPrecondition, "", "",
			fmt.Sprintf("its format is version %d, this roost reads %d", version, manifestVersion)).
			WithHint("it was saved by a newer roost: install that")
	}
	var man manifest
	if err := json.Unmarshal(body, &man); err != nil {
		return manifest{}, damaged(err.Error())
	}
	if man.Version != version {
		return manifest{}, damaged(fmt.Sprintf("it says that it is of version %d", man.Version))
	}
	return man, nil
}

// openManifest checks a manifest's first line, and the sum before anything else that it says.
func openManifest(raw []byte) (version int, body []byte, err error) {
	line, body, found := bytes.Cut(raw, []byte("\n"))
	head, sum := line, ""
	if at := bytes.LastIndexByte(line, ' ') + 1; at > 0 {
		head, sum = line[:at], string(line[at:])
	}
	if !found || sum != manifestSum(string(head), body) {
		return 0, nil, damaged("its checksum is wrong")
	}
	magic, number, _ := strings.Cut(strings.TrimSpace(string(head)), " ")
	version, err = strconv.Atoi(number)
	if magic != manifestMagic || err != nil {
		return 0, nil, damaged("it is no manifest")
	}
	return version, body, nil
}

func damaged(why string) error { return fault.New(fault.DataLoss, "", "", why) }

// readCapture reads a published capture. One whose manifest is damaged is fault.DataLoss.
func readCapture(dir string) (runtime.Capture, manifest, error) {
	raw, err := os.ReadFile(filepath.Join(dir, paths.Manifest))
	if err != nil {
		return runtime.Capture{}, manifest{}, fault.Wrap(err, "read", "capture manifest")
	}
	man, err := parseManifest(raw)
	if err != nil {
		return runtime.Capture{}, manifest{}, fault.Wrap(err, "parse", "capture manifest "+dir)
	}
	return runtime.Capture{Dir: dir, Record: man.Record}, man, nil
}

// writeManifest replaces a published capture's manifest as a whole.
func writeManifest(dir string, man manifest) error {
	raw, err := man.encode()
	if err != nil {
		return err
	}
	return fault.Wrap(replaceFile(filepath.Join(dir, paths.Manifest), raw, true), "write", "capture manifest")
}
