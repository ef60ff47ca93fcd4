package cli

import (
	"context"

	"github.com/spf13/cobra"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "resume ID",
		Short:   "Wake a paused sandbox, with its processes as they were",
		Long:    "Wake a paused sandbox, with its processes as they were. Resuming a running one is a success.",
		Example: "  roost resume $id",
		Args:    takes("ID"),
		RunE: a.onSandbox(func(ctx context.Context, c *client, id string) error {
			progress := startBusy(false, "resuming "+id)
			sandbox, err := answer[v1.Sandbox](c.api.ResumeSandboxWithResponse(ctx, id, v1.Resume{}))
			progress.stop()
			if err != nil {
				return err
			}
			return a.showSandbox(sandbox, printID)
		}),
	}
}
