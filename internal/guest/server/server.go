package server

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/activity"
	"github.com/roosthq/roost/internal/guest/cgroup"
	"github.com/roosthq/roost/internal/guest/filesystem"
	"github.com/roosthq/roost/internal/guest/identity"
	"github.com/roosthq/roost/internal/guest/process"
	"github.com/roosthq/roost/internal/guest/reaper"
	"github.com/roosthq/roost/internal/guest/restore"
)

// Port is where clients expect the guest.
const Port = "49983"

// Config describes a guest. Root and CgroupRoot are required.
type Config struct {
	ControlToken string
	DefaultUser  string
	Envs         map[string]string
	Version      string
	// Root is where etc and run are: "/" in a sandbox, another folder in tests.
	Root string
	// CgroupRoot is a cgroup v2 directory; user processes go to CgroupRoot/user.
	CgroupRoot string
	// Device holds the root file system; for Grow.
	Device string
	System restore.System
	Reaper *reaper.Reaper
	Users  account.Database
}

// Server is a guest's front. Make it with New.
type Server struct {
	http        *http.Server
	tree        *cgroup.Tree
	filesystem  *filesystem.Service
	identity    *identity.Identity
	activity    *activity.Clock
	connections connections
}

// New makes a guest that waits, frozen, for its first Restore.
func New(ctx context.Context, c Config) (*Server, error) {
	tree, err := cgroup.Open(c.CgroupRoot)
	if err != nil {
		return nil, err
	}
	s := &Server{
		tree:        tree,
		identity:    identity.New(c.ControlToken, c.DefaultUser, c.Envs),
		activity:    activity.New(),
		connections: connections{open: map[net.Conn]struct{}{}},
	}
	s.filesystem = filesystem.NewService(c.Users, s.identity)
	control, err := restore.NewService(ctx, restore.Config{
		Identity: s.identity, Tree: tree, Users: c.Users, Activity: s.activity, System: c.System,
		Root: c.Root, Device: c.Device, Version: c.Version,
		DropOthers: s.connections.dropOthers,
		RunHelper:  helper(c.Reaper),
	})
	if err != nil {
		_ = tree.Close()
		return nil, err
	}
	manager := process.NewManager(c.Reaper, tree, s.activity)
	s.http = s.newHTTP(s.routes(c, process.NewService(manager, c.Users, s.identity), control))
	return s, nil
}

func (s *Server) newHTTP(handler http.Handler) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 2000},
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // clients' broken connections, mostly
		ConnState:         s.connections.state,
		ConnContext:       withConn,
	}
}

// Serve serves until Close.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(l) }

// Close stops serving and ends every user process.
func (s *Server) Close() error {
	_ = s.http.Close()
	s.filesystem.Close()
	return s.tree.Close()
}
