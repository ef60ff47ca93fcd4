package firecrackertest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
)

// States of the VM, as GET / says them.
const (
	notStarted = "Not started"
	running    = "Running"
	paused     = "Paused"
)

// machine is the VM that the stand-in pretends to run.
type machine struct {
	mu      sync.Mutex
	id      string
	version string
	state   string
	// booting: something was configured that a load does not go with.
	booting bool
	config  struct {
		MemoryMB int  `json:"mem_size_mib"`
		Track    bool `json:"track_dirty_pages"`
	}
	kernel bool
	disk   *os.File
	// path of the disk, as it is saved.
	path  string
	drive string
	iface string
	// rates are the bytes a second of drive and network interface; 0 is no bound.
	diskRate, netRate int64
	memory            []byte
	dirty             map[int]bool
	// failing is what the next save fails with.
	failing string
}

// serve is Firecracker from its arguments on; it returns how it ends when it cannot serve.
func serve(args []string, id, version string) (int, error) {
	socket := "/run/firecracker.socket"
	for len(args) > 0 {
		if len(args) < 2 {
			return 153, fmt.Errorf("arguments error: %s", args[0])
		}
		switch args[0] {
		case "--api-sock":
			socket = args[1]
		case "--level":
		case "--seccomp-filter":
			if _, err := os.ReadFile(args[1]); err != nil {
				return 1, fmt.Errorf("seccomp filter: %w", err)
			}
		default:
			return 153, fmt.Errorf("found argument '%s' which wasn't expected, or isn't valid in this context", args[0])
		}
		args = args[2:]
	}
	m := &machine{id: id, version: version, state: notStarted, dirty: map[int]bool{}}
	if err := m.listenToTests(); err != nil {
		return 1, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return 1, fmt.Errorf("failed to open the API socket at: %s: %w", socket, err)
	}
	return 1, (&http.Server{Handler: m}).Serve(l) //nolint:gosec // its client is the test
}

// ServeHTTP implements http.Handler: one request at a time, as the real one.
func (m *machine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	answer, err := m.handle(r.Method, r.URL.Path, body)
	var ends fatal
	switch {
	case err != nil:
		reply(w, http.StatusBadRequest, map[string]string{"fault_message": err.Error()})
	case answer != nil:
		reply(w, http.StatusOK, answer)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
	if errors.As(err, &ends) {
		_ = http.NewResponseController(w).Flush()
		fail(1, err)
	}
}

// reply is whole when it is flushed.
func reply(w http.ResponseWriter, status int, answer any) {
	raw, err := json.Marshal(answer)
	if err != nil {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw)
}

// fatal is an error after which Firecracker ends.
type fatal struct{ error }

func (m *machine) handle(method, path string, body []byte) (any, error) {
	e, id, found := API().Find(method, path)
	if !found {
		return nil, fmt.Errorf("Invalid request method and/or path: %s %s.", method, path) //nolint:staticcheck // the real one's words
	}
	if e.Body != "" {
		if err := m.check(e, id, body); err != nil {
			return nil, err
		}
	}
	switch {
	case e.When == "before" && m.state != notStarted:
		return nil, errors.New("The requested operation is not supported after starting the microVM.") //nolint:staticcheck // the real one's words
	case e.When == "after" && m.state == notStarted:
		return nil, errors.New("The requested operation is not supported before starting the microVM.") //nolint:staticcheck // the real one's words
	}
	switch e.Answer {
	case "Instance":
		return map[string]string{"id": m.id, "state": m.state, "vmm_version": m.version, "app_name": "Firecracker"}, nil
	case "Version":
		return map[string]string{"firecracker_version": m.version}, nil
	}
	return nil, m.change(e.Body, body)
}

// check holds the body to its type, and the id in it to the path.
func (m *machine) check(e Endpoint, id string, body []byte) error {
	if len(body) == 0 {
		return fmt.Errorf("Empty %s request.", e.Method) //nolint:staticcheck // the real one's words
	}
	if err := API().Check(e.Body, body); err != nil {
		return fmt.Errorf("An error occurred when deserializing the json body of a request: %w.", err) //nolint:staticcheck // the real one's words
	}
	if e.ID == "" {
		return nil
	}
	var object map[string]any
	if err := json.Unmarshal(body, &object); err != nil {
		return err
	}
	if object[e.ID] != id {
		return errors.New("The id from the path does not match the id from the body!") //nolint:staticcheck // the real one's words
	}
	return nil
}
