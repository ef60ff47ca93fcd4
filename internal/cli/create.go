package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

type createFlags struct {
	vcpus, memory, disk int
	timeout             string
	env, metadata       pairs
	runtime             string
	cold                bool
	idempotencyKey      string
	quiet               bool
}

func (a *app) createCommand() *cobra.Command {
	var f createFlags
	cmd := &cobra.Command{
		Use:   "create [TEMPLATE]",
		Short: "Create a sandbox and print its id",
		Long: `Create a sandbox from a template (default: base) and print its id once it takes commands.

The first start of a new size boots once, which takes seconds; later ones restore that memory.

--runtime takes another of the host's runtimes than its best: ` + "`roost doctor`" + ` lists them, with the
isolation that each gives (hardware, sentry, emulated). A sandbox keeps its runtime for life.`,
		Example: `  id=$(roost create)
  roost create base --vcpus 2 --memory-mb 1024 --timeout 30m
  roost create --env MODE=test --metadata owner=ci --json
  roost create --runtime qemu`,
		Args: takes("[TEMPLATE]"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		body, err := f.request(cmd, args)
		if err != nil {
			return usage(cmd, "%s", err.Error())
		}
		return a.run(func(ctx context.Context, c *client, _ []string) error {
			return a.create(ctx, c, body, f)
		})(cmd, args)
	}
	f.register(cmd)
	return cmd
}

func (f *createFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.IntVar(&f.vcpus, "vcpus", 1, "virtual CPUs")
	flags.IntVar(&f.memory, "memory-mb", 512, "memory in MiB")
	flags.IntVar(&f.disk, "disk-size-mb", 5120, "root disk in MiB")
	flags.StringVar(&f.timeout, "timeout", "5m", "pause after so long without activity: seconds, 5m, or 0 for never")
	flags.Var(&f.env, "env", "environment of every command in it (repeatable)")
	flags.Var(&f.metadata, "metadata", "labels of your own (repeatable)")
	flags.BoolVar(&f.cold, "cold", false, "boot a kernel instead of restoring the template's memory (slower)")
	flags.StringVar(&f.runtime, "runtime", "", "what runs it, gvisor or qemu (default: what the host does best)")
	flags.StringVar(&f.idempotencyKey, "idempotency-key", "", "a repeated key returns the sandbox that the first one made")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "no progress on stderr")
}

func (f *createFlags) request(cmd *cobra.Command, args []string) (v1.CreateSandbox, error) {
	idleSeconds, err := parseSeconds(f.timeout)
	if err != nil {
		return v1.CreateSandbox{}, err
	}
	body := v1.CreateSandbox{
		Vcpus: given(cmd, "vcpus", f.vcpus), MemoryMb: given(cmd, "memory-mb", f.memory),
		DiskSizeMb: given(cmd, "disk-size-mb", f.disk), IdleTimeoutS: given(cmd, "timeout", idleSeconds),
		Env: f.env.asMap(), Metadata: f.metadata.asMap(), Runtime: nonEmpty(f.runtime), Cold: &f.cold,
	}
	if len(args) > 0 {
		body.Template = &args[0]
	}
	return body, nil
}

func (a *app) create(ctx context.Context, c *client, body v1.CreateSandbox, f createFlags) error {
	progress := startBusy(f.quiet, "creating a sandbox")
	params := &v1.CreateSandboxParams{IdempotencyKey: nonEmpty(f.idempotencyKey)}
	//nolint:bodyclose // created closes it.
	sandbox, err := created(c.api.CreateSandbox(ctx, params, body, acceptStream))(progress)
	progress.stop()
	if err != nil {
		return on(text(body.Template), err)
	}
	if a.json {
		return printJSON(os.Stdout, sandbox)
	}
	if !f.quiet && isTerminal(os.Stderr) {
		_, _ = fmt.Fprintf(os.Stderr, "roost: it runs in %s, isolation %s\n", printable(sandbox.Runtime), printable(sandbox.Isolation))
	}
	_, err = fmt.Fprintln(os.Stdout, sandbox.Id)
	return err
}

func acceptStream(_ context.Context, req *http.Request) error {
	req.Header.Set("Accept", "application/x-ndjson, application/json;q=0.9")
	return nil
}

// created follows the stream of a create to its sandbox. A server may answer plain JSON too.
func created(resp *http.Response, err error) func(progress *busy) (v1.Sandbox, error) {
	return func(progress *busy) (v1.Sandbox, error) {
		body, err := content(resp, err)
		if err != nil {
			return v1.Sandbox{}, err
		}
		defer func() { _ = body.Close() }()
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
			return followCreate(body, progress)
		}
		var sandbox v1.Sandbox
		if err := json.NewDecoder(body).Decode(&sandbox); err != nil {
			return v1.Sandbox{}, notRoost("read the answer: " + err.Error())
		}
		return sandbox, nil
	}
}

func followCreate(body io.Reader, progress *busy) (v1.Sandbox, error) {
	dec := json.NewDecoder(bufio.NewReader(body))
	for {
		var event v1.CreateEvent
		if err := dec.Decode(&event); err != nil {
			return v1.Sandbox{}, fault.New(fault.Unavailable, "", "", "the connection ended before the sandbox was ready: "+err.Error()).
				WithHint("`roost ls -a` shows whether it was made; --idempotency-key makes trying again safe")
		}
		switch {
		case event.Error != nil:
			return v1.Sandbox{}, fromAPI(*event.Error)
		case event.Sandbox != nil:
			return *event.Sandbox, nil
		case event.Progress != nil:
			progress.step(strings.TrimSpace(event.Progress.Step + " " + text(event.Progress.Detail)))
		}
	}
}
