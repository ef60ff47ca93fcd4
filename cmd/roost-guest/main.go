// Command roost-guest runs inside a sandbox: as /init of a VM, or with --no-init where mounts and
// network are there before it: as PID 1 of a gVisor sandbox, or an ordinary process in tests.
// See package guest.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/roosthq/roost/internal/guest/boot"
	"github.com/roosthq/roost/internal/guest/reaper"
	"github.com/roosthq/roost/internal/guest/restore"
	"github.com/roosthq/roost/internal/guest/server"
)

// version is set by the build: -ldflags "-X main.version=…".
var version = "dev"

// tokenVariable holds the control token: arguments can be read by everybody inside.
const tokenVariable = "ROOST_CONTROL_TOKEN"

func main() {
	// The kernel hands init whatever it does not know of its command line, so PID 1 of a VM
	// parses no flags.
	if os.Getpid() == 1 && !slices.Contains(os.Args, "--no-init") && !slices.Contains(os.Args, "--version") {
		boot.Die(runInit())
	}
	if err := runPlain(); err != nil {
		fmt.Fprintln(os.Stderr, "roost-guest:", err)
		os.Exit(1)
	}
}

// runInit returns only with the reason why the VM cannot go on.
func runInit() error {
	c, err := boot.Prepare()
	if err != nil {
		return err
	}
	ctx := context.Background()
	config := server.Config{
		ControlToken: c.ControlToken, DefaultUser: c.DefaultUser, Envs: c.Envs, Version: version,
		Root: "/", CgroupRoot: boot.CgroupRoot, Device: c.RootDevice,
		System: restore.Kernel{}, Reaper: reaper.NewInit(ctx),
	}
	return serve(ctx, config, "0.0.0.0:"+server.Port)
}

// serve returns when ctx ends, or with the reason why it cannot go on.
func serve(ctx context.Context, config server.Config, address string) error {
	if err := server.Warm(ctx, config); err != nil {
		boot.Say("%v (going on without)", err)
	}
	guest, err := server.New(ctx, config)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return errors.Join(err, guest.Close())
	}
	boot.Say("ready")
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { closed <- guest.Close() })
	err = guest.Serve(listener)
	if stop() {
		return errors.Join(err, guest.Close())
	}
	return <-closed
}

type options struct {
	listen, controlToken, cgroupRoot, root, defaultUser, hostname, dns string
	noInit, version                                                    bool
}

func parse() options {
	var o options
	flag.StringVar(&o.listen, "listen", "0.0.0.0:"+server.Port, "address to serve on")
	flag.StringVar(&o.controlToken, "control-token", os.Getenv(tokenVariable), "token that Control requests carry; better given as "+tokenVariable)
	flag.BoolVar(&o.noInit, "no-init", false, "run where mounts and network are there: as PID 1 of gVisor, or an ordinary process")
	flag.StringVar(&o.cgroupRoot, "cgroup-root", boot.CgroupRoot, "cgroup v2 directory below which user processes live")
	flag.StringVar(&o.root, "root", "/", "folder whose etc and run are the sandbox's")
	flag.StringVar(&o.defaultUser, "default-user", "user", "who acts when a request names nobody")
	flag.StringVar(&o.hostname, "hostname", "", "as PID 1: host name until the first restore (empty: roost)")
	flag.StringVar(&o.dns, "dns", "", "as PID 1: name server for /etc/resolv.conf (empty: leave it)")
	flag.BoolVar(&o.version, "version", false, "print the version")
	flag.Parse()
	return o
}

func (o options) validate() error {
	switch {
	case !o.noInit:
		return errors.New("this is the init of a VM; elsewhere start it with --no-init")
	case o.controlToken == "":
		return errors.New("--control-token is missing")
	}
	return nil
}

func runPlain() error {
	o := parse()
	if o.version {
		fmt.Println(version)
		return nil
	}
	if err := o.validate(); err != nil {
		return err
	}
	_ = os.Unsetenv(tokenVariable) // not for children
	config := server.Config{
		ControlToken: o.controlToken, DefaultUser: o.defaultUser, Version: version,
		Root: o.root, CgroupRoot: o.cgroupRoot, System: restore.Process{},
	}
	if os.Getpid() == 1 {
		return runInside(o, config)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	config.Reaper = reaper.NewOwn()
	return serve(ctx, config, o.listen)
}

// runInside is PID 1 of gVisor: it reaps orphans too, and no signal from inside ends it.
func runInside(o options, config server.Config) error {
	if err := boot.Inside(o.hostname, o.dns); err != nil {
		return err
	}
	ctx := context.Background()
	config.System, config.Reaper = restore.Sentry{}, reaper.NewInit(ctx)
	return serve(ctx, config, o.listen)
}
