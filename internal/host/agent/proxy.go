package agent

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	pathpkg "path"
	"strings"

	"connectrpc.com/connect"

	"github.com/roosthq/roost/api/gen/filesystem/filesystemconnect"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/sandbox"
)

const guestPattern = "/sandboxes/{id}/guest/"

// guestProxy carries requests to a sandbox's guest, unbuffered.
type guestProxy struct {
	sandboxes *sandbox.Manager
	log       *slog.Logger
}

func (p *guestProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	path := strings.TrimPrefix(r.URL.Path, "/sandboxes/"+id+"/guest")
	if serviceOf(path) == guestv1connect.ControlName {
		refuse(w, r, fault.New(fault.PermissionDenied, "call", path, "only the agent may"))
		return
	}
	guest, err := p.sandboxes.Guest(id, "reach")
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer guest.Release()
	// Without it the server closes the request's body at the first byte of the answer. A guest
	// may answer before the transport has seen that body's end, and the answer would be cut off.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		refuse(w, r, fault.Wrap(err, "reach", "guest of sandbox "+id))
		return
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "http", Host: "guest"})
			pr.Out.URL.Path, pr.Out.URL.RawPath = path, ""
			pr.Out.Header.Del(guestclient.ControlHeader)
			pr.Out.Header.Set(guestclient.AccessHeader, guest.AccessToken)
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode != http.StatusSwitchingProtocols { // that body is written to as well
				resp.Body = guest.Watch(resp.Body)
			}
			return nil
		},
		// Its request is the outgoing one, whose path is another.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			refuse(w, r, p.broken(id, err))
		},
		Transport:     guest.Transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
}

// broken says why a request to a guest failed: most often because the sandbox was paused or
// ended under it.
func (p *guestProxy) broken(id string, err error) error {
	if now := p.sandboxes.Reachable(id, "reach"); now != nil {
		return now
	}
	return &fault.Error{Kind: fault.Unavailable, Op: "reach", Object: "guest of sandbox " + id, Err: err}
}

// serviceOf is the service in an RPC's path, or whatever stands in its place.
func serviceOf(path string) string {
	// The guest cleans paths too: "/./x" is "/x" there.
	name, _, _ := strings.Cut(strings.TrimPrefix(pathpkg.Clean(path), "/"), "/")
	return name
}

// isRPC: Connect would take any GET for a call of its own.
func isRPC(r *http.Request) bool {
	_, path, _ := strings.Cut(r.URL.Path, "/guest")
	switch serviceOf(path) {
	case processconnect.ProcessName, filesystemconnect.FilesystemName, guestv1connect.ControlName:
		return connectErrors.IsSupported(r)
	default:
		return false
	}
}

var connectErrors = connect.NewErrorWriter()

// refuse answers in the caller's protocol: Connect's errors, or envd's JSON for plain HTTP.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	if isRPC(r) {
		_ = connectErrors.Write(w, r, fault.ToConnect(err))
		return
	}
	status := httpStatus(fault.KindOf(err))
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Roost-Code", fault.KindOf(err).String())
	if hint := fault.HintOf(err); hint != "" {
		w.Header().Set("Roost-Hint", hint)
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": status, "message": fault.Message(err)})
}

func httpStatus(k fault.Kind) int {
	switch k {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.FailedPrecondition, fault.Aborted:
		return http.StatusConflict
	case fault.PermissionDenied:
		return http.StatusForbidden
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
