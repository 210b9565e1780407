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
import type { Structure, TaskNode } from "../api/api.js"
import { useMediaQuery } from "../components/useMediaQuery.js"
import { type Box, groupNodeId, layOutGraph } from "./graphLayout.js"
import { buildTaskRows, type TaskRow } from "./taskRows.js"
import "@xyflow/react/dist/base.css"

type TaskFlowNode = Node<{ task: TaskNode; row: TaskRow | undefined; down: boolean }, "task">
/** Not "group": React Flow has default styles for that type. */
type GroupFlowNode = Node<{ name: string; isMapped: boolean }, "taskGroup">

interface Props {
  readonly structure: Structure
  readonly view: RunView
}

/** Most tasks that are drawn. The layout of more blocks the page for seconds, and is too dense to read. */
export const MAX_DRAWN_TASKS = 300

/** The DAG of the run with the states of its tasks. The Gantt table has the same content as text. */
export function DagGraph({ structure, view }: Props) {
  if (structure.nodes.length <= MAX_DRAWN_TASKS) return <DrawnGraph structure={structure} view={view} />
  return (
    <section className="card" aria-labelledby="graph">
      <h2 id="graph">DAG</h2>
      <p className="faint">
        The graph of a DAG with {structure.nodes.length} tasks is not drawn; the limit is {MAX_DRAWN_TASKS}.
      </p>
    </section>
  )
}

function DrawnGraph({ structure, view }: Props) {
  const down = useMediaQuery("(max-width: 640px)")
  const dark = useMediaQuery("(prefers-color-scheme: dark)")
  const boxes = useMemo(() => layOutGraph(structure, down), [structure, down])
  const edges = useMemo(() => buildEdges(structure, view), [structure, view])
  const nodes = useMemo(() => buildNodes(structure, view, boxes, down), [structure, view, boxes, down])
  const height = Math.max(...[...boxes.values()].map((box) => box.y + box.height)) + 64
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

function buildNodes(structure: Structure, view: RunView, boxes: ReadonlyMap<string, Box>, down: boolean) {
  const rows = new Map(buildTaskRows(view, structure).map((row) => [row.taskId, row]))
  return [
    ...structure.groups.map((group): GroupFlowNode => {
      const id = groupNodeId(group.group_id)
      const data = { name: shortName(group.group_id, group.parent_id), isMapped: group.is_mapped }
      return {
        id,
        type: "taskGroup",
        data,
        ...placeInGroup(boxes, id, group.parent_id),
        selectable: false,
        focusable: false,
      }
    }),
    ...structure.nodes.map((task): TaskFlowNode => {
      const id = task.task_id
      const row = rows.get(id)
      const ariaLabel = `${id}: ${(row?.state ?? "no status").replaceAll("_", " ")}`
      const box = placeInGroup(boxes, id, task.group_id)
      const handles = buildHandles(box.measured, down)
      return { id, type: "task", data: { task, row, down }, ...box, handles, ariaLabel }
    }),
  ]
}

/** Return the ends of edges at a task. Without them, React Flow measures nodes after each change, and hides edges meanwhile. */
function buildHandles({ width, height }: { width: number; height: number }, down: boolean): NodeHandle[] {
  const [x, y] = down ? [width / 2, 0] : [0, height / 2]
  return [
    { type: "target", position: down ? Position.Top : Position.Left, x, y },
    { type: "source", position: down ? Position.Bottom : Position.Right, x: width - x, y: height - y },
  ]
}

/** Return position and size of a node. In React Flow, positions are relative to the group. */
function placeInGroup(boxes: ReadonlyMap<string, Box>, id: string, groupId: string | null) {
  const box = boxes.get(id) ?? { x: 0, y: 0, width: 0, height: 0 }
  const group = groupId === null ? undefined : boxes.get(groupNodeId(groupId))
  const position = { x: box.x - (group?.x ?? 0), y: box.y - (group?.y ?? 0) }
  const parent = groupId === null ? {} : { parentId: groupNodeId(groupId) }
  const size = { width: box.width, height: box.height }
  return { position, ...size, measured: size, ...parent }
}

function buildEdges(structure: Structure, view: RunView): Edge[] {
  return structure.edges.map(({ source, target }) => ({
    id: `${source} ${target}`,
    source,
    target,
    animated: view.tasks[target]?.state === "running",
    focusable: false,
  }))
}

/** Return an id without the prefix of its group. */
function shortName(id: string, groupId: string | null): string {
  return groupId !== null && id.startsWith(`${groupId}.`) ? id.slice(groupId.length + 1) : id
}

function Task({ data: { task, row, down } }: NodeProps<TaskFlowNode>) {
  const kind = task.is_setup ? "setup" : task.is_teardown ? "teardown" : task.operator
  const instances = Object.values(row?.counts ?? {}).reduce((sum, count) => sum + count, 0)
  const done = row?.counts.success ?? 0
  return (
    <div className="task" data-state={row?.state ?? "no_status"} data-result={task.is_result}>
      <Handle type="target" position={down ? Position.Top : Position.Left} isConnectable={false} />
      <span className="name" title={task.task_id}>
        {shortName(task.task_id, task.group_id)}
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

function Group({ data: { name, isMapped } }: NodeProps<GroupFlowNode>) {
  return (
    <div className="group">
      {name}
      {isMapped && <span className="faint"> mapped</span>}
    </div>
  )
}

const NODE_TYPES = { task: Task, taskGroup: Group }
