package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// Runtimes, as `roost up --runtime` calls them.
const (
	onQEMU   = "qemu"
	onGVisor = "gvisor"
)

// server is an installation of the benchmark's own; its sandboxes run in one runtime.
type server struct {
	bin, data, runtime string
	cmd                *exec.Cmd
	api                *v1.ClientWithResponses
}

const startLimit = 5 * time.Minute

// buildTemplate returns the binary and the folder of templates, the base template in it.
func buildTemplate(ctx context.Context, o options) (bin, templates string, err error) {
	if bin, err = filepath.Abs(o.bin); err != nil {
		return "", "", err
	}
	if templates, err = filepath.Abs(o.data); err != nil {
		return "", "", err
	}
	build := exec.CommandContext(ctx, bin, "template", "build", "base", "--data", templates, "--download-cache", ".cache/downloads")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", "", fmt.Errorf("build base template: %w", err)
	}
	return bin, templates, nil
}

func startServer(ctx context.Context, o options, runtime string) (_ *server, err error) {
	bin, templates, err := buildTemplate(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &server{bin: bin, runtime: runtime}
	if s.data, err = os.MkdirTemp("", "roost-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.remove()
		}
	}()
	if err := os.Symlink(filepath.Join(templates, "images"), filepath.Join(s.data, "images")); err != nil {
		return nil, err
	}
	return s, s.up(ctx)
}

func (s *server) up(ctx context.Context) error {
	ready := filepath.Join(s.data, "ready")
	s.cmd = exec.Command(s.bin, "up", "--runtime", s.runtime, "--data", s.data, "--listen", "127.0.0.1:0", "--ready-file", ready, "--log-file", filepath.Join(s.data, "log"))
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(startLimit)
	for {
		if raw, err := os.ReadFile(ready); err == nil && len(raw) > 0 {
			return s.connect(strings.TrimSpace(string(raw)))
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.New("roost up does not serve")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (s *server) connect(url string) (err error) {
	var client struct{ Key string }
	raw, err := os.ReadFile(filepath.Join(s.data, "client.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &client); err != nil {
		return err
	}
	s.api, err = v1.NewClientWithResponses(url, v1.WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
		r.Header.Set("X-API-Key", client.Key)
		return nil
	}))
	return err
}

// remove stops the server and takes everything of it away.
func (s *server) remove() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		_ = s.cmd.Wait()
	}
	if out, err := exec.Command(s.bin, "uninstall", "--data", s.data, "--yes", "--keep-images").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "bench: uninstall: %v\n%s", err, out)
	}
	_ = os.RemoveAll(s.data)
}

// create makes a sandbox of the default size.
func (s *server) create(ctx context.Context, cold bool) (string, error) {
	return s.createLike(ctx, v1.CreateSandbox{Cold: &cold})
}

// createLike makes a sandbox that never pauses by itself.
func (s *server) createLike(ctx context.Context, want v1.CreateSandbox) (string, error) {
	never := 0
	want.IdleTimeoutS = &never
	resp, err := s.api.CreateSandboxWithResponse(ctx, nil, want)
	if err != nil {
		return "", err
	}
	if resp.JSON201 == nil {
		return "", fmt.Errorf("create: %s", resp.Body)
	}
	return resp.JSON201.Id, nil
}

// exec runs a command that must succeed and returns its output.
func (s *server) exec(ctx context.Context, id string, cmd ...string) (string, error) {
	return s.execLike(ctx, id, v1.Exec{Cmd: cmd})
}

// execRoot is exec as root, for as long as it takes.
func (s *server) execRoot(ctx context.Context, id string, cmd ...string) (string, error) {
	root, forEver := "root", 0
	return s.execLike(ctx, id, v1.Exec{Cmd: cmd, User: &root, TimeoutS: &forEver})
}

func (s *server) execLike(ctx context.Context, id string, e v1.Exec) (string, error) {
	resp, err := s.api.ExecSandboxWithResponse(ctx, id, e)
	if err != nil {
		return "", err
	}
	if resp.JSON200 == nil || resp.JSON200.ExitCode != 0 {
		return "", fmt.Errorf("exec %v: %s", e.Cmd, resp.Body)
	}
	return string(bytes.TrimSpace(resp.JSON200.Stdout)), nil
}

func (s *server) pause(ctx context.Context, id string) error {
	resp, err := s.api.PauseSandboxWithResponse(ctx, id, v1.PauseSandboxJSONRequestBody{})
	if err == nil && resp.JSON200 == nil {
		err = fmt.Errorf("pause: %s", resp.Body)
	}
	return err
}

func (s *server) resume(ctx context.Context, id string) error {
	resp, err := s.api.ResumeSandboxWithResponse(ctx, id, v1.ResumeSandboxJSONRequestBody{})
	if err == nil && resp.JSON200 == nil {
		err = fmt.Errorf("resume: %s", resp.Body)
	}
	return err
}

func (s *server) delete(ctx context.Context, id string) error {
	resp, err := s.api.DeleteSandboxWithResponse(context.WithoutCancel(ctx), id)
	if err == nil && resp.StatusCode() != http.StatusNoContent {
		err = fmt.Errorf("delete: %s", resp.Body)
	}
	return err
}

// journal is what the benchmark reads of a sandbox's journal.
type journal struct {
	UID     int `json:"uid"`
	Capture int `json:"capture"`
	// Template is what it started from.
	Template struct {
		Tree string `json:"tree"`
	} `json:"template"`
	// Instance is gVisor's record.
	Instance struct {
		PID int `json:"pid"`
		gvisorStart
	} `json:"instance"`
}

// gvisorStart is what instances and captures of gVisor say of how they were started: an instance
// comes from the warm memory that says the same.
type gvisorStart struct {
	Identity struct {
		Build string `json:"build"`
	} `json:"identity"`
	Guest    string `json:"guest"`
	Template string `json:"template"`
	VCPUs    int    `json:"vcpus"`
	MemoryMB int    `json:"memory_mb"`
	DiskMB   int    `json:"disk_mb"`
}

func (s *server) journal(id string) (j journal, err error) {
	raw, err := os.ReadFile(filepath.Join(s.data, "sandboxes", id, "journal.json"))
	if err != nil {
		return j, err
	}
	return j, json.Unmarshal(raw, &j)
}

// pid of a sandbox's VMM: the one process of its uid.
func (s *server) pid(id string) (int, error) {
	j, err := s.journal(id)
	if err != nil {
		return 0, err
	}
	pids, err := processesOf(j.UID)
	if err != nil {
		return 0, err
	}
	if len(pids) == 0 {
		return 0, fmt.Errorf("sandbox %s has no process", id)
	}
	return pids[0], nil
}

// processesOf are the processes of a uid.
func processesOf(uid int) (pids []int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if st, err := os.Stat(dir); err == nil && int(st.Sys().(*syscall.Stat_t).Uid) == uid {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// capture is the folder of a paused sandbox's saved state.
func (s *server) capture(id string) (string, error) {
	j, err := s.journal(id)
	return filepath.Join(s.data, "sandboxes", id, "captures", fmt.Sprint(j.Capture)), err
}
