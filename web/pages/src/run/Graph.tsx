import {
  Background,
  Controls,
  type Edge,
  Handle,
  type Node,
  type NodeHandle,
  type NodeProps,
  Position,
  ReactFlow,
} from "@xyflow/react"
import type { RunView } from "airflow-stream-client"
import { useMemo } from "react"
import type { Structure, TaskNode } from "../server.js"
import { useMedia } from "../useMedia.js"
import { type Box, groupKey, placesOf } from "./layout.js"
import { rowsOf, type TaskRow } from "./tasks.js"
import "@xyflow/react/dist/base.css"

type TaskBox = Node<{ task: TaskNode; row: TaskRow | undefined; down: boolean }, "task">
/** Not "group", for which React Flow has a look of its own. */
type GroupBox = Node<{ name: string; isMapped: boolean }, "around">

interface Props {
  readonly structure: Structure
  readonly view: RunView
}

/** The DAG of the run, with the states of its tasks. The table of tasks says the same in words. */
export function Graph({ structure, view }: Props) {
  const down = useMedia("(max-width: 640px)")
  const dark = useMedia("(prefers-color-scheme: dark)")
  const places = useMemo(() => placesOf(structure, down), [structure, down])
  const edges = useMemo(() => edgesOf(structure, view), [structure, view])
  const nodes = useMemo(() => nodesOf(structure, view, places, down), [structure, view, places, down])
  const height = Math.max(...[...places.values()].map((box) => box.y + box.height)) + 64
  return (
    <section className="card flush" aria-labelledby="graph">
      <h2 id="graph">DAG</h2>
      <div className="graph" style={{ height: `${Math.min(Math.max(height, 180), 560)}px` }}>
        <ReactFlow
          key={down ? "down" : "right"}
          nodes={nodes}
          edges={edges}
          nodeTypes={NODE_TYPES}
          colorMode={dark ? "dark" : "light"}
          fitView
          fitViewOptions={{ maxZoom: 1, padding: { top: "44px", bottom: "20px", x: "16px" } }}
          minZoom={0.1}
          nodesDraggable={false}
          nodesConnectable={false}
          zoomOnScroll={false}
          preventScrolling={false}
        >
          <Background />
          <Controls showInteractive={false} position="top-right" orientation="horizontal" />
        </ReactFlow>
      </div>
    </section>
  )
}

function nodesOf(structure: Structure, view: RunView, places: ReadonlyMap<string, Box>, down: boolean) {
  const rows = new Map(rowsOf(view, structure).map((row) => [row.taskId, row]))
  return [
    ...structure.groups.map((group): GroupBox => {
      const id = groupKey(group.group_id)
      const data = { name: nameOf(group.group_id, group.parent_id), isMapped: group.is_mapped }
      return { id, type: "around", data, ...inside(places, id, group.parent_id), selectable: false, focusable: false }
    }),
    ...structure.nodes.map((task): TaskBox => {
      const id = task.task_id
      const row = rows.get(id)
      const said = `${id}: ${(row?.state ?? "no status").replaceAll("_", " ")}`
      const box = inside(places, id, task.group_id)
      const handles = handlesOf(box.measured, down)
      return { id, type: "task", data: { task, row, down }, ...box, handles, ariaLabel: said }
    }),
  ]
}

/** Return where edges begin and end at a task: left out, they would be measured anew, and edges be gone till then. */
function handlesOf({ width, height }: { width: number; height: number }, down: boolean): NodeHandle[] {
  const [x, y] = down ? [width / 2, 0] : [0, height / 2]
  return [
    { type: "target", position: down ? Position.Top : Position.Left, x, y },
    { type: "source", position: down ? Position.Bottom : Position.Right, x: width - x, y: height - y },
  ]
}

/** Return where something goes within the group around it, as React Flow wants it. */
function inside(places: ReadonlyMap<string, Box>, id: string, groupId: string | null) {
  const box = places.get(id) ?? { x: 0, y: 0, width: 0, height: 0 }
  const around = groupId === null ? undefined : places.get(groupKey(groupId))
  const position = { x: box.x - (around?.x ?? 0), y: box.y - (around?.y ?? 0) }
  const parent = groupId === null ? {} : { parentId: groupKey(groupId) }
  const size = { width: box.width, height: box.height }
  return { position, ...size, measured: size, ...parent }
}

function edgesOf(structure: Structure, view: RunView): Edge[] {
  return structure.edges.map(({ source, target }) => ({
    id: `${source} ${target}`,
    source,
    target,
    animated: view.tasks[target]?.state === "running",
    focusable: false,
  }))
}

/** Return the name of something without that of the group around it. */
function nameOf(id: string, groupId: string | null): string {
  return groupId !== null && id.startsWith(`${groupId}.`) ? id.slice(groupId.length + 1) : id
}

function Task({ data: { task, row, down } }: NodeProps<TaskBox>) {
  const kind = task.is_setup ? "setup" : task.is_teardown ? "teardown" : task.operator
  const instances = Object.values(row?.counts ?? {}).reduce((sum, count) => sum + count, 0)
  const done = row?.counts["success"] ?? 0
  return (
    <div className="task" data-state={row?.state ?? "no_status"} data-result={task.is_result}>
      <Handle type="target" position={down ? Position.Top : Position.Left} isConnectable={false} />
      <span className="name" title={task.task_id}>
        {nameOf(task.task_id, task.group_id)}
      </span>
      <span className="kind">
        {(row?.state ?? "no status").replaceAll("_", " ")}
        {(task.is_mapped || instances > 1) && ` ${done}/${instances}`}
        <span className="faint"> {kind}</span>
      </span>
      {task.is_result && <span className="tag">result</span>}
      <Handle type="source" position={down ? Position.Bottom : Position.Right} isConnectable={false} />
    </div>
  )
}

function Group({ data: { name, isMapped } }: NodeProps<GroupBox>) {
  return (
    <div className="group">
      {name}
      {isMapped && <span className="faint"> mapped</span>}
    </div>
  )
}

const NODE_TYPES = { task: Task, around: Group }
